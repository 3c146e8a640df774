"""What cannot be exported is refused with the reason and the user's own line, and never exported wrong.

The catalogue is ``data/misbehaving.txt``; every model of it is written to a file, imported, and taken the whole way.
"""

import sys
from pathlib import Path
from typing import Any

import pytest

from engineworks.runtime.errors import ExportError

sys.path.insert(0, str(Path(__file__).parent))
import misbehaving  # type: ignore[import-not-found]

ALL = misbehaving.models()
SAME_DB = 80.0  # 13 of float32's 24 bits: sums in another order on inputs 30 times as large; another function keeps 40
KNOWN: dict[str, str] = {}  # exported wrong for now → why


def cases(refused: bool) -> list[Any]:
    """Return the models of one outcome, the slow ones and the known faults marked."""
    chosen = [model for model in ALL.values() if bool(model.reason) == refused]
    return [
        pytest.param(
            model,
            id=model.name,
            marks=[pytest.mark.slow] * model.slow
            + [pytest.mark.xfail(strict=True, reason=KNOWN.get(model.name, ""))] * (model.name in KNOWN),
        )
        for model in chosen
    ]


@pytest.mark.filterwarnings("default")  # torch's own, of what it is about to give up
@pytest.mark.parametrize("model", cases(refused=True))
def test_it_is_refused_with_the_reason_and_the_line(model: Any, tmp_path: Path) -> None:
    make = misbehaving.write(model, tmp_path)
    with pytest.raises(ExportError, match=model.reason) as caught:
        misbehaving.export(make())
    said = str(caught.value)
    assert "\n" not in said and str(tmp_path) not in said and ".py" not in said.replace("mynet.py:", "")
    if model.line:
        place, _, code = model.line.partition(", in {}: ")
        assert f"At {place}, in " in said and said.endswith(code if len(code) <= 80 else code[:79] + "…")
    else:
        assert "mynet.py" not in said, "a line is named that the catalogue does not know"


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("model", cases(refused=False))
def test_it_is_exported_and_right_at_every_batch_and_on_other_inputs(model: Any, tmp_path: Path) -> None:
    make = misbehaving.write(model, tmp_path)
    graph, _ = misbehaving.export(make())
    kept, where = misbehaving.worst(graph, make)
    assert kept > SAME_DB, where


@pytest.mark.parametrize(
    "name", ["branch on shape[0]", "view(2, -1)", "mean taken off over the batch", "a scale looked up by the batch"]
)
@pytest.mark.filterwarnings("default")
def test_what_depends_on_the_batch_is_right_at_a_fixed_one(name: str, tmp_path: Path) -> None:
    make = misbehaving.write(ALL[name], tmp_path)
    graph, _ = misbehaving.export(make(), (2, 2, 2))
    assert misbehaving.worst(graph, make, (2,))[0] > SAME_DB


def test_the_catalogue_is_large_and_names_lines() -> None:
    refused = [model for model in ALL.values() if model.reason]
    assert len(ALL) >= 250 and len(refused) >= 100
    assert sum(bool(model.line) for model in refused) >= 0.8 * len(refused)
