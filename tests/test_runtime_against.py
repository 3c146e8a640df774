"""Two bundles against each other: equal ones agree, faults fail, and what cannot be compared is said."""

import io
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engineworks.runtime.against import check_against, least, same_original
from engineworks.runtime.bundle import Bundle, open_bundle, write_bundle
from engineworks.runtime.check import main
from engineworks.runtime.compare import sqnr
from engineworks.runtime.manifest import Batch

GOLDEN = Path(__file__).parent / "data" / "lenet5-fp16"
HERE = ["--device", "cpu"]


def changed(folder: Path, weights: float = 1.0, rows: int = 0, **fields: Any) -> Path:
    """The golden bundle again: one tensor's weights scaled, some rows stored, other fields in its manifest."""
    golden = open_bundle(GOLDEN)
    content = {name: golden.read(name) for name in golden.manifest.files}
    if weights != 1:
        onnx = pytest.importorskip("onnx")
        model = onnx.ModelProto.FromString(content["model.onnx"])
        tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
        tensor.raw_data = (np.frombuffer(tensor.raw_data, np.float16) * np.float16(weights)).tobytes()
        content["model.onnx"] = model.SerializeToString()
    if rows:
        with np.load(io.BytesIO(content["reference.npz"])) as file:
            arrays = {name: file[name][:rows] for name in file.files}
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        content["reference.npz"] = stream.getvalue()
    return write_bundle(folder / "changed", replace(golden.manifest, **fields), content).path


def test_a_bundle_agrees_with_itself_bit_for_bit(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN), "--against", str(GOLDEN), *HERE]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert "output agrees: the two on 8 rows: equal, bit for bit" in lines[3]
    assert "against the original" in lines[1] and "against the original" in lines[2]


def test_a_fault_in_one_of_them_fails_by_its_figures_and_exits_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = str(changed(tmp_path, weights=0.7))
    assert main([str(GOLDEN), "--against", other, *HERE]) == 1
    assert "output FAILS: the two on 8 rows" in capsys.readouterr().out
    assert main([other, "--against", str(GOLDEN), *HERE, "--json"]) == 1
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    assert (found["passed"], found["against"], len(found["pairs"])) == (False, "lenet5-fp16", 1)


def test_winners_that_changed_are_told_with_their_margins(tmp_path: Path) -> None:
    found = check_against(open_bundle(GOLDEN), open_bundle(changed(tmp_path, weights=-1.0)), "cpu")
    (pair,) = found.pairs
    assert len(pair.flips) == round(8 * (1 - pair.figures.top1)) > 0
    assert all("it stood out by" in flip for flip in pair.flips)


def test_bundles_of_other_weights_are_compared_and_nothing_is_required(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    golden = open_bundle(GOLDEN).manifest
    fine = write_other(tmp_path, replace(golden, weights=replace(golden.weights, detail="fine-tuned.safetensors")))
    assert not same_original(golden, fine.manifest)
    assert main([str(GOLDEN), "--against", str(fine.path), *HERE]) == 0
    assert "(of other weights: nothing is required)" in capsys.readouterr().out


def write_other(folder: Path, manifest: Any) -> Bundle:
    golden = open_bundle(GOLDEN)
    return write_bundle(folder / "other", manifest, {name: golden.read(name) for name in golden.manifest.files})


def test_bundles_with_other_inputs_or_outputs_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    golden = open_bundle(GOLDEN).manifest
    wide = write_other(tmp_path, replace(golden, inputs=(replace(golden.inputs[0], shape=("batch", 3, 32, 32)),)))
    assert main([str(GOLDEN), "--against", str(wide.path), *HERE]) == 1
    assert "their inputs differ: input float32 (1, 32, 32) and input float32 (3, 32, 32)" in capsys.readouterr().err


def test_int8_is_compared_on_its_own_images_alone(tmp_path: Path) -> None:
    golden = open_bundle(GOLDEN).manifest
    rungs = tuple(replace(rung, candidate=rung.candidate.replace("fp16", "int8")) for rung in golden.parity)
    precision = replace(golden.precision, asked="int8")
    other = open_bundle(changed(tmp_path, rows=3, precision=precision, parity=rungs, name="made-int8"))
    for first, second in ((open_bundle(GOLDEN), other), (other, open_bundle(GOLDEN))):
        found = check_against(first, second, "cpu")
        assert (found.inputs_of, found.pairs[0].rows, found.passed) == ("made-int8", 3, True)


@pytest.mark.parametrize("batch", [Batch(1, 2, 3), Batch(3, 3, 3), Batch(16, 16, 16)])
def test_rows_are_answered_in_batches_that_each_bundle_takes(batch: Batch, tmp_path: Path) -> None:
    found = check_against(open_bundle(GOLDEN), open_bundle(changed(tmp_path, batch=batch)), "cpu")
    assert found.pairs[0].rows == 8 and found.pairs[0].figures.top1 == 1.0
    assert found.pairs[0].figures.sqnr_db > 100, "the same weights: other batches round otherwise at the most"


@given(st.floats(3, 60), st.floats(3, 60), st.integers(0, 2**32 - 1))
def test_answers_within_their_own_bounds_are_never_refused(first_db: float, second_db: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    truth = rng.standard_normal((4, 5))
    sides = []
    for decibels in (first_db, second_db):
        error = rng.standard_normal(truth.shape) if seed % 2 else truth * rng.choice([-1, 1])  # along it: the worst
        sides.append(truth + error * np.linalg.norm(truth) / np.linalg.norm(error) * 10 ** (-decibels / 20))
    assert sqnr(sides[0], sides[1]) >= least(first_db, second_db) - 1e-6


def test_without_a_bound_of_its_own_nothing_follows() -> None:
    assert least(0.0, 20.0) == -math.inf
    assert least(20.0, 20.0) == pytest.approx(-20 * math.log10(0.2 / 0.9))
