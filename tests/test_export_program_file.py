"""Programs of torch.export: loaded only on trust, held to the batch they were exported for, refused by their cause."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from engineworks import runtime
from engineworks.export import program_file
from engineworks.export.inputs import InputSpec, parse_shape
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.runtime.errors import ExportError, ParityError
from engineworks.runtime.manifest import Batch

BATCH = Dim("batch", min=1, max=64)
ROWS = torch.linspace(-1, 1, 12).reshape(2, 6)
FREE: tuple[Any, ...] = ({0: BATCH},)
Save = Callable[..., Recipe]


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.weight = nn.Parameter(torch.randn(6, 4, generator=generator))
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Any:
        return self.dropout(torch.relu(x @ self.weight))


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = Tiny().weight

    def forward(self, left: Tensor, right: Tensor) -> Any:
        return {"sum": left @ self.weight + right, "parts": (left * 2, None)}


class Random(Tiny):
    def forward(self, x: Tensor) -> Any:
        return x @ self.weight + torch.rand(x.shape[0], 4)


class Counts(Tiny):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x: Tensor) -> Any:
        self.get_buffer("seen").add_(1)
        return x @ self.weight


class Whole(Tiny):
    def forward(self, x: Tensor) -> Any:
        return x @ self.weight - x.mean()


class Number(Tiny):
    def forward(self, x: Tensor) -> Any:
        return x @ self.weight, 3


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def save() -> Save:
    """Write a program, and return the recipe that takes it, trusted."""

    def saved(module: nn.Module, *given: Tensor, free: Any = FREE, train: bool = False, **fields: Any) -> Recipe:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            program = torch.export.export(module.train(train), given or (ROWS,), dynamic_shapes=free, strict=False)
            torch.export.save(program, "net.pt2")
        usual: dict[str, Any] = {"engine": "none", "batch": Batch(1, 2, 3), "trust": True}
        return Recipe("net.pt2", **(usual | fields))

    return saved


def refused(recipe: Recipe) -> str:
    with pytest.raises(ExportError) as caught:
        program_file.program_source(recipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def inputs(recipe: Recipe) -> tuple[InputSpec, ...]:
    return program_file.program_source(recipe).open().inputs


def test_a_program_is_not_even_opened_without_trust(save: Save, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = save(Tiny(), trust=False)
    monkeypatch.setattr(torch.export, "load", lambda *_: pytest.fail("it was opened"))
    assert refused(recipe) == ("net.pt2: a .pt2 file holds a pickle, which can run any code. If you trust it: --trust.")


@pytest.mark.slow
@pytest.mark.parametrize(("precision", "atol"), [("fp32", 1e-5), ("fp16", 1e-2)])  # sums of six products near 1
def test_a_program_answers_as_its_module_does(save: Save, tmp_path: Path, precision: Any, atol: float) -> None:
    bundle = export_model(save(Tiny(), precision=precision), tmp_path / "out")
    with runtime.load(bundle.path, device="cpu") as session, torch.no_grad():
        found, expected = session.infer(ROWS.numpy()), Tiny().eval()(ROWS).numpy()
    assert np.abs(found - expected).max() < atol
    assert bundle.manifest.inputs[0].shape == ("batch", 6)
    assert {rung.reference for rung in bundle.manifest.parity} == {"pytorch-fp32"}


@pytest.mark.slow
def test_several_inputs_and_outputs_keep_their_names(save: Save, tmp_path: Path) -> None:
    bundle = export_model(save(Two(), ROWS, ROWS[:, :4].clone(), free=FREE * 2), tmp_path / "out")
    assert [tensor.name for tensor in bundle.manifest.inputs] == ["left", "right"]
    assert [tensor.name for tensor in bundle.manifest.outputs] == ["sum", "parts_0"]
    with runtime.load(bundle.path, device="cpu") as session:
        found = session.infer({"left": ROWS.numpy(), "right": ROWS[:, :4].numpy()})
    assert np.array_equal(found["parts_0"], ROWS.numpy() * 2)


@pytest.mark.slow
def test_a_free_program_may_be_fixed_and_a_fixed_one_is_taken_at_its_size(save: Save, tmp_path: Path) -> None:
    for name, free in (("free", FREE), ("fixed", None)):
        recipe = save(Tiny(), free=free, batch=Batch(2, 2, 2))
        assert export_model(recipe, tmp_path / name).manifest.inputs[0].shape == (2, 6)


@pytest.mark.slow
def test_a_changed_program_is_no_hit(save: Save, tmp_path: Path) -> None:
    heard: list[list[str]] = []
    for name, scale in (("a", 1), ("b", 1), ("c", 2)):
        module, said = Tiny(), list[str]()
        module.weight.data *= scale
        export_model(save(module), tmp_path / name, say=lambda step, *_, said=said: said.append(step))
        heard.append(said)
    assert ["cache" in said for said in heard] == [False, True, False]


def test_shapes_may_be_repeated_by_name_or_without_and_in_any_order(save: Save) -> None:
    expected = (InputSpec("x", (6,)),)
    for shapes in ((), ("6",), ("x:6",)):
        assert inputs(save(Tiny(), shapes=tuple(map(parse_shape, shapes)))) == expected
    both = save(Two(), ROWS, ROWS[:, :4].clone(), free=FREE * 2, shapes=(parse_shape("right:4"), parse_shape("left:6")))
    assert inputs(both) == (InputSpec("left", (6,)), InputSpec("right", (4,)))
    for wrong in (["7"], ["y:6"], ["x:6:int64"], ["x:6", "x:6"]):
        message = refused(save(Tiny(), shapes=tuple(map(parse_shape, wrong))))
        assert message == "--shape: net.pt2 takes x float32 (N, 6)."


@pytest.mark.parametrize(
    ("free", "batch", "message"),
    [
        (FREE, Batch(1, 8, 65), "was exported for batches of 1 to 64, not 1 to 65"),
        (({0: Dim("b", min=2, max=16)},), Batch(1, 2, 3), "was exported for batches of 2 to 16, not 1 to 3"),
        (({0: Dim.DYNAMIC},), Batch(1, 2, 3), "was exported for batches of 2 to any number, not 1 to 3"),
        (None, Batch(1, 2, 3), "its batch is fixed to 2. Pass --batch 2."),
        (({0: BATCH, 1: Dim("w", min=2, max=9)},), Batch(1, 2, 3), "input x has a free axis beside the batch"),
    ],
)
def test_the_range_of_the_program_is_not_widened(save: Save, free: Any, batch: Batch, message: str) -> None:
    module = nn.ReLU() if isinstance(free, tuple) and 1 in free[0] else Tiny()
    got = refused(save(module, free=free, batch=batch)).replace("input input", "input x")
    assert message in got


def test_a_batch_without_an_upper_end_takes_any(save: Save) -> None:
    assert inputs(save(Tiny(), free=({0: Dim.DYNAMIC},), batch=Batch(2, 8, 4096))) == (InputSpec("x", (6,)),)


@pytest.mark.parametrize(
    ("module", "train", "message"),
    [
        (Tiny(), True, "forward draws random numbers (aten.dropout.default at dropout)"),
        (Random(), False, "forward draws random numbers (aten.rand.default at rand)"),
        (Counts(), False, "forward changes the module's own state (seen), which an engine cannot keep"),
        (Tiny().half(), False, "expected float32 weights, weight is torch.float16. Export the float32 network."),
        (Tiny().double(), False, "expected float32 weights, weight is torch.float64"),
    ],
)
def test_a_program_that_no_graph_can_stand_for_is_refused_by_its_cause(
    save: Save, module: nn.Module, train: bool, message: str
) -> None:
    given = ROWS.to(next(module.parameters()).dtype)
    assert message in refused(save(module, given, train=train))


def test_dropout_in_eval_mode_is_none(save: Save) -> None:
    assert inputs(save(Tiny())) == (InputSpec("x", (6,)),)


def test_answers_that_are_no_tensors_or_lean_on_the_batch_are_refused(save: Save, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"forward returns a int \(output_1\)"):
        export_model(save(Number()), tmp_path / "out")
    with pytest.raises(ParityError, match=r"depends on its whole batch\. Fix the batch: --batch N"):
        export_model(save(Whole()), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_inputs_of_other_dtypes_are_taken_or_named(save: Save) -> None:
    class Lookup(nn.Module):
        def forward(self, ids: Tensor) -> Tensor:
            return ids + 1

    assert inputs(save(Lookup(), torch.zeros(2, 7, dtype=torch.long))) == (InputSpec("ids", (7,), "int64"),)
    message = refused(save(Lookup(), torch.zeros(2, 7, dtype=torch.double)))
    assert message == "net.pt2: input ids (float64) has no batch, or a type not taken here."


@pytest.mark.parametrize("content", [b"", b"junk" * 100, b"PK\x03\x04" + bytes(200), None])
def test_a_damaged_file_is_one_line_and_nothing_on_the_terminal(
    save: Save, capfd: pytest.CaptureFixture[str], content: bytes | None
) -> None:
    recipe = save(Tiny())
    whole = Path("net.pt2").read_bytes()
    Path("net.pt2").write_bytes(whole[: len(whole) // 2] if content is None else content)
    assert refused(recipe).startswith("net.pt2: cannot be loaded as a program of torch.export (")
    assert capfd.readouterr().err == ""


def test_other_files_of_torch_are_refused(save: Save) -> None:
    recipe = save(Tiny())
    for other in (Tiny().state_dict(), Tiny()):
        torch.save(other, "net.pt2")
        assert "cannot be loaded as a program" in refused(recipe)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder.pt2").mkdir()
    for name in ("none.pt2", "folder.pt2"):
        assert refused(Recipe(name, trust=True)) == f"{name}: there is no such file."
