"""What each rung must reach: a few rows are held to the worst of as many, and too little is refused with its figure."""

from pathlib import Path

import pytest

from engineworks.export.floors import carries, check_carried, within
from engineworks.export.inputs import InputSpec
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import PrecisionName, Recipe
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

EMBEDDING = """
import torch
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.e, self.f = nn.Embedding(50, 8), nn.Linear(8, 3)

    def forward(self, ids):
        return self.f(self.e(ids).mean(1))

def make(seed):
    torch.manual_seed(seed)
    return Net().eval()
"""


@pytest.mark.parametrize(("precision", "seed"), [("fp32", 1), ("fp16", 1), ("bf16", 19)])
def test_a_correct_network_of_few_outputs_is_held_to_the_worst_row_where_a_batch_is_one(
    precision: PrecisionName, seed: int, tmp_path: Path
) -> None:
    """Its first row keeps half a bit less than four together, and their margin."""
    (tmp_path / "net.py").write_text(EMBEDDING)
    recipe = Recipe(
        f"{tmp_path / 'net.py'}:make", precision, engine="none", model_args=(("seed", seed),),
        shapes=(InputSpec("ids", (12,), "int64"),),
    )  # fmt: skip
    made = export_model(recipe, tmp_path / "b", use_cache=False).manifest
    needed = {rung.batch: rung.required_db for rung in made.parity if rung.candidate == "onnx-fp32"}
    assert needed[1] < needed[8] == needed[32]


def test_what_all_rows_keep_decides_whether_a_type_carries_a_network() -> None:
    assert carries({1: [12.0], 8: [25.0]}) and not carries({1: [12.0, 40.0], 8: [19.0, 40.0]})
    check_carried({1: [12.0], 8: [25.0]}, "fp16")
    with pytest.raises(
        ExportError, match=r"fp16 cannot .* keeps 19\.0 dB of its answers, 20 are .* Use --bf16 or --fp32"
    ):
        check_carried({1: [12.0, 40.0], 8: [19.0, 40.0]}, "fp16")
    with pytest.raises(ExportError, match=r"Use --fp32\."):
        check_carried({2: [3.0]}, "bf16")


@pytest.mark.parametrize(("batch", "rows"), [((1, 8, 32), 4), ((1, 1, 1), 1), ((8, 8, 8), 8), ((1, 2, 3), 3)])
def test_as_many_rows_are_taken_as_the_batch_allows(batch: tuple[int, int, int], rows: int) -> None:
    assert within(4, Batch(*batch)) == rows
