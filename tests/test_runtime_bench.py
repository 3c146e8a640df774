"""bench-model times every backend that runs here, beside its bare call."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.runtime import InputError, Session, Tensor, load
from engineworks.runtime.bench import main, random_inputs
from engineworks.runtime.cuda import Gpu
from engineworks.runtime.manifest import Batch

Capture = pytest.CaptureFixture[str]
QUICK = ("--seconds", "0.02", "--device", "cpu")


def told(capsys: Capture, *arguments: str) -> Any:
    assert main(["--json", *QUICK, *arguments]) == 0
    return json.loads(capsys.readouterr().out)


def test_every_batch_is_timed_with_every_number_of_callers(bundle: Path, capsys: Capture) -> None:
    content = told(capsys, str(bundle))
    cells = content["cells"]
    assert [(cell["batch"], cell["threads"]) for cell in cells] == [(1, 1), (1, 4), (4, 1), (4, 4), (8, 1), (8, 4)]
    for cell in cells:
        assert cell["backend"] == "onnxruntime-cpu"
        assert 0 < cell["p50_ms"] <= cell["p90_ms"] <= cell["p99_ms"]
        assert cell["rows_per_second"] > 0 and cell["ratio"] > 0 and cell["calls"] >= cell["threads"]
    assert content["bundle"] == "four-fp16 (four, fp16)"


def test_batches_and_callers_may_be_chosen(bundle: Path, capsys: Capture) -> None:
    cells = told(capsys, str(bundle), "--batch", "2", "--batch", "3", "--threads", "2")["cells"]
    assert [(cell["batch"], cell["threads"]) for cell in cells] == [(2, 2), (3, 2)]


def test_several_inputs_are_timed_too(two_inputs: Path, capsys: Capture) -> None:
    assert len(told(capsys, str(two_inputs), "--batch", "1", "--threads", "1")["cells"]) == 1


def test_the_table_has_a_line_for_each_and_says_what_the_ratio_is(bundle: Path, capsys: Capture) -> None:
    assert main([*QUICK, "--batch", "1", "--threads", "1", str(bundle)]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "four-fp16 (four, fp16)"
    assert lines[1].split() == ["backend", "batch", "callers", "p50", "ms", "p90", "ms", "p99", "ms", "rows/s", "ratio"]
    assert lines[2].split()[:3] == ["onnxruntime-cpu", "1", "1"]
    assert lines[3] == "  ratio: our median over that of the backend's bare call, in turns"


def test_what_does_not_run_here_is_told_with_the_reason(
    bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = Gpu(None, "no driver at all")
    monkeypatch.setattr("engineworks.runtime.backend.probe_gpu", lambda index=0: none)
    monkeypatch.setattr("engineworks.runtime.ort_session.cuda_missing", lambda: "")
    assert main(["--seconds", "0.01", "--batch", "1", "--threads", "1", str(bundle)]) == 0
    assert "passed over: device cuda: no driver at all" in capsys.readouterr().out
    assert main(["--device", "cuda", str(bundle)]) == 1
    assert capsys.readouterr().err.startswith("bench-model: nothing runs ")


def test_a_batch_that_the_bundle_does_not_take_is_one_line(bundle: Path, capsys: Capture) -> None:
    assert main([*QUICK, "--batch", "9", str(bundle)]) == 1
    assert capsys.readouterr().err.startswith("bench-model: input 'image': expected a batch of 1 to 8, got 9.")


def test_a_failure_in_the_middle_ends_all_callers(
    bundle: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = iter(range(10**6))

    def infer(self: Any, inputs: Any) -> None:
        if next(calls) > 20:
            raise InputError("broken")

    monkeypatch.setattr(Session, "infer", infer)
    assert main([*QUICK, "--batch", "1", "--threads", "4", str(bundle)]) == 1
    assert capsys.readouterr().err == "bench-model: broken\n"


def test_no_bundle_is_one_line(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path)]) == 1
    assert "has no manifest.json" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--batch", "0", "x"], ["--seconds", "0", "x"], []])
def test_wrong_usage_is_status_2(arguments: list[str]) -> None:
    assert main(arguments) == 2


def test_random_inputs_fit_every_type(make_bundle: Callable[..., Path]) -> None:
    inputs = (Tensor("x", "float32", ("n", 4)), Tensor("ids", "int64", ("n", 2)), Tensor("mask", "bool", ("n",)))
    session = load(make_bundle(inputs=inputs, batch=Batch(1, 2, 4)), device="cpu")
    arrays = random_inputs(session, 3)
    assert {name: (str(array.dtype), array.shape) for name, array in arrays.items()} == {
        "x": ("float32", (3, 4)),
        "ids": ("int64", (3, 2)),
        "mask": ("bool", (3,)),
    }
    assert np.isin(arrays["ids"], (0, 1)).all()
    session.close()


def test_a_free_axis_beside_the_batch_is_no_guess(make_bundle: Callable[..., Path]) -> None:
    with (
        load(make_bundle(inputs=(Tensor("x", "float32", ("n", "width")),)), device="cpu") as session,
        pytest.raises(InputError, match="its size would be a guess"),
    ):
        random_inputs(session, 1)
