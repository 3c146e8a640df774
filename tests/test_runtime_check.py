"""check-model: a bundle that agrees passes on this host; planted faults fail, by name, with exit status 1."""

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.runtime.bundle import open_bundle, write_bundle
from engineworks.runtime.check import main
from engineworks.runtime.cuda import probe_gpu
from engineworks.runtime.manifest import Rung
from engineworks.runtime.parity import check_bundle

GOLDEN = Path(__file__).parent / "data" / "lenet5-fp16"


def changed(folder: Path, manifest: Callable[[Any], Any] = lambda m: m, **files: Callable[[bytes], bytes]) -> Path:
    """Write the golden bundle again with other content, its digests right."""
    golden = open_bundle(GOLDEN)
    content = {name: golden.read(name) for name in golden.manifest.files}
    for name, change in files.items():
        full = {"model": "model.onnx", "reference": "reference.npz"}[name]
        content[full] = change(content[full])
    return write_bundle(folder / "changed", manifest(golden.manifest), content).path


def test_the_golden_bundle_agrees_here_and_holds_every_relation(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN), "--device", "cpu"]) == 0
    out = capsys.readouterr().out.splitlines()
    made = [line for line in out if line.startswith("when it was made")]
    assert [line.split()[4] for line in made] == ["onnx-fp32", "onnx-fp16"], "the rungs below, as they were recorded"
    words = [line.split()[1] for line in out[len(made) :]]
    assert words == ["agrees:"] * 3 + ["permutation", "duplicates", "neighbours", "split"]
    assert all("FAILS" not in line for line in out)


def test_a_backend_that_cannot_run_here_says_why_and_fails_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    if not probe_gpu().problem:
        pytest.skip("this host has a GPU")
    assert main([str(GOLDEN)]) == 0
    assert "onnxruntime-cuda   not run: " in capsys.readouterr().out
    assert main([str(GOLDEN), "--device", "cuda"]) == 1
    assert "no backend runs it here" in capsys.readouterr().err


def test_json_has_every_figure_and_no_infinity(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(GOLDEN), "--device", "cpu", "--json"]) == 0
    found = json.loads(capsys.readouterr().out, parse_constant=pytest.fail)
    (backend,) = found["backends"]
    assert found["passed"] and backend["passed"] and backend["backend"] == "onnxruntime-cpu"
    assert {one["batch"] for one in backend["compared"]} == {1, 8, 32}


def lowered(content: bytes) -> bytes:
    """Let every weight of one tensor lose a tenth: FP16 bits as they stand in the file."""
    onnx = pytest.importorskip("onnx")
    model = onnx.ModelProto.FromString(content)
    tensor = max(model.graph.initializer, key=lambda one: len(one.raw_data))
    values = np.frombuffer(tensor.raw_data, np.float16) * np.float16(0.9)
    tensor.raw_data = values.astype(np.float16).tobytes()
    return bytes(model.SerializeToString())


def test_weights_that_changed_since_the_proof_fail_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(changed(tmp_path, model=lowered)), "--device", "cpu"]) == 1
    assert capsys.readouterr().out.count("FAILS: output") == 3


def test_a_winner_that_changed_is_told_with_its_margin(tmp_path: Path) -> None:
    def one_row_otherwise(content: bytes) -> bytes:
        import io

        with np.load(io.BytesIO(content)) as file:
            arrays = {name: file[name].copy() for name in file.files}
        output = arrays["output:output"]
        winner = int(output[0].argmin())
        output[0, winner] = output[0].max() + 100  # far from a tie
        stream = io.BytesIO()
        np.savez(stream, **arrays)
        return stream.getvalue()

    (found,) = check_bundle(open_bundle(changed(tmp_path, reference=one_row_otherwise)), "cpu")
    assert not found.passed
    first = found.compared[0]
    assert len(first.flips) == 1 and first.flips[0].startswith("row 0: class ")
    assert first.figures.top1 == 0


def test_a_near_tie_is_told_from_a_fault() -> None:
    from engineworks.runtime.parity import flips_of

    truth = np.array([[1.0, 1.01, 0.0], [1.0, 3.0, 0.0]])
    near, far = flips_of(truth, np.array([[1.01, 1.0, 0.0], [2.0, 1.9, 0.0]]), "logits")
    assert "a near tie that the difference explains" in near
    assert "row 1: class 1 became 0" in far


def test_a_bundle_without_figures_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = changed(tmp_path, lambda manifest: replace(manifest, parity=()))
    assert main([str(path), "--device", "cpu"]) == 1
    assert "it records no comparison of its graph" in capsys.readouterr().err


def test_the_rung_of_the_graph_that_runs_decides(tmp_path: Path) -> None:
    def stricter(manifest: Any) -> Any:
        rungs: tuple[Rung, ...] = manifest.parity
        return replace(manifest, parity=tuple(replace(rung, required_db=300.0) for rung in rungs))

    (found,) = check_bundle(open_bundle(changed(tmp_path, stricter)), "cpu")
    assert not any(one.passed for one in found.compared)


def test_it_runs_without_torch_and_onnx_and_by_its_module(tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules['torch'] = sys.modules['onnx'] = None; import runpy; "
        "sys.argv = ['check-model', sys.argv[1], '--device', 'cpu']; "
        "runpy.run_module('engineworks.runtime.check', run_name='__main__')"
    )
    made = subprocess.run([sys.executable, "-c", code, str(GOLDEN)], capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr


def two_graphs(folder: Path, change: Callable[[bytes], bytes] = lambda content: content) -> Any:
    """The golden bundle as if INT8: a second graph for CPUs, held to rungs of its own."""
    golden = open_bundle(GOLDEN)
    fp16 = [rung for rung in golden.manifest.parity if rung.candidate == "onnx-fp16"]
    rungs = [replace(rung, candidate=name) for rung in fp16 for name in ("onnx-int8", "onnx-int8-cpu")]
    manifest = replace(
        golden.manifest, precision=replace(golden.manifest.precision, asked="int8"), parity=tuple(rungs),
        graph={**golden.manifest.graph, "cpu": "cpu.onnx"},
    )  # fmt: skip
    content = {name: golden.read(name) for name in golden.manifest.files}
    return write_bundle(folder / "int8", manifest, content | {"cpu.onnx": change(content["model.onnx"])})


def test_each_rung_is_held_against_the_one_before_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = two_graphs(tmp_path)
    first, second = check_bundle(bundle, "cpu")
    assert (first.backend, second.backend) == ("model.onnx on cpu", "onnxruntime-cpu")
    assert first.steps == ()
    (step,) = second.steps
    assert (step.before, step.output, step.batch, step.figures.max_abs) == ("model.onnx on cpu", "output", 8, 0.0)
    assert main([str(bundle.path), "--device", "cpu"]) == 0
    assert (
        "onnxruntime-cpu    against model.onnx on cpu: output, batch 8: equal, bit for bit" in capsys.readouterr().out
    )


def test_a_fault_of_one_rung_is_told_of_that_one_alone(tmp_path: Path) -> None:
    first, second = check_bundle(two_graphs(tmp_path, lowered), "cpu")
    assert first.passed and not second.passed
    assert second.steps[0].figures.sqnr_db < 50  # FP16's own noise is at 70
