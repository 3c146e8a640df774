"""Every network, precision, backend and batch against PyTorch on this host's GPU: ``pytest -m gpu``.

The engine is compiled here and run here. What it must reach is the bundle's own figure for the typed graph at that
batch, derived from the network's rounding noise (``reference.noise_floor``), 6 dB of margin taken off already. Where
nothing can be run, each test is skipped with the reason that the driver, the GPU or the package gives.
"""

import importlib.metadata
import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

from engineworks.export.engine import RTX_TARGETS
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import PrecisionName, Recipe
from engineworks.export.reference import run_once
from engineworks.export.samples import rows
from engineworks.export.source import resolve
from engineworks.models import NETWORKS
from engineworks.runtime.backend import BackendSession, Speed, open_bundle_session
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.compare import agreement
from engineworks.runtime.cuda import Gpu, probe_gpu
from engineworks.runtime.ort_session import cuda_missing
from engineworks.runtime.trt_runtime import absent

PRECISIONS = get_args(PrecisionName)
BACKENDS: dict[str, Any] = {"tensorrt": "tensorrt", "rtx": "rtx", "onnxruntime-cuda": "none"}
BATCHES = ("min", "opt", "max")
MATRIX = list(itertools.product(NETWORKS, PRECISIONS, BACKENDS))
# TF32 keeps 11 of float32's 24 bits of significand, 6.02 dB each (IEEE 754-2019, section 3; CUDA programming guide).
TF32_DB = (24 - 11) * 6.02


def skip_reason(precision: str, backend: str, gpu: Gpu) -> str:
    """Why this cannot be run here, or nothing."""
    if gpu.problem:
        return gpu.problem
    if backend == "rtx" and gpu.target not in RTX_TARGETS:
        return f"TensorRT-RTX runs on {', '.join(RTX_TARGETS)}; this GPU is {gpu.target}"
    package = cuda_missing() if backend == "onnxruntime-cuda" else absent(BACKENDS[backend])
    if package:
        return package
    return _torch_missing()


def _torch_missing() -> str:
    import torch

    return "" if torch.cuda.is_available() else f"this PyTorch has no CUDA ({importlib.metadata.version('torch')})"


@dataclass(frozen=True)
class Case:
    """One exported bundle, opened, and the original on the GPU."""

    bundle: Bundle
    session: BackendSession
    original: Any
    required: dict[int, float]


@pytest.fixture(scope="module", params=MATRIX, ids=["-".join(case) for case in MATRIX])
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Case]:
    network, precision, backend = request.param
    if reason := skip_reason(precision, backend, probe_gpu()):
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("bundle")
    made = make_case(network, precision, backend, folder)
    yield made
    made.session.close()
    for name in made.bundle.manifest.files:  # hundreds of megabytes for some
        (made.bundle.path / name).unlink()


def make_case(network: str, precision: Any, backend: str, folder: Path, speed: Speed | None = None) -> Case:
    """Export, compile and open; the backend is the one asked for, or that is an error."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    calibration: Any = {"calib_data": "synthetic", "calib_images": 16, "quality": "fast"} if precision == "int8" else {}
    recipe = Recipe(network, precision, engine=BACKENDS[backend], **calibration)
    bundle = export_model(recipe, folder / f"{network}-{precision}", use_cache=False)
    name: Any = "onnxruntime" if backend == "onnxruntime-cuda" else backend
    session = open_bundle_session(bundle, device="cuda", backend=name, strict=True, speed=speed or Speed())
    assert session.backend.name == backend
    module = resolve(recipe, folder).open().run
    assert isinstance(module, torch.nn.Module)
    rounds_to_tf32 = any("TF32" in note for note in bundle.manifest.notes)
    names = {f"onnx-{precision}", f"onnx-{precision}-emulated"}
    rungs = [rung for rung in bundle.manifest.parity if rung.candidate in names]
    required = {rung.batch: rung.required_db - TF32_DB * rounds_to_tf32 for rung in rungs}
    return Case(bundle, session, module.to("cuda"), required)


def inputs_of(bundle: Bundle, batch: int) -> dict[str, Any]:
    with np.load(bundle.path / "reference.npz", allow_pickle=False) as kept:
        return {tensor.name: rows(kept[f"input:{tensor.name}"], batch) for tensor in bundle.manifest.inputs}


def on_gpu(module: Any, inputs: dict[str, Any]) -> list[Any]:
    """What PyTorch answers in float32 on the GPU."""
    answers = run_once(lambda *tensors: _to_host(module(*(tensor.to("cuda") for tensor in tensors))), inputs)
    return list(answers.values())


def _to_host(outputs: Any) -> Any:
    from torch.utils._pytree import tree_map

    return tree_map(lambda leaf: leaf.cpu() if hasattr(leaf, "cpu") else leaf, outputs)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("size", BATCHES)
def test_a_backend_agrees_with_pytorch_on_this_gpu(case: Case, size: str) -> None:
    batch = getattr(case.bundle.manifest.batch, size)
    inputs = inputs_of(case.bundle, batch)
    names = [output.name for output in case.bundle.manifest.outputs]
    for expected, got in zip(on_gpu(case.original, inputs), case.session.run(inputs, names), strict=True):
        figures = agreement(expected, np.asarray(got, np.float32), case.bundle.manifest.scores)
        assert figures.sqnr_db >= case.required[batch]


def lenet5(backend: str, folder: Path, speed: Speed | None = None) -> Case:
    if reason := skip_reason("fp16", backend, probe_gpu()):
        pytest.skip(reason)
    return make_case("lenet5", "fp16", backend, folder, speed)


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_32_threads_of_200_calls_give_bitwise_what_one_gives_on_this_gpu(backend: str, tmp_path: Path) -> None:
    case = lenet5(backend, tmp_path)
    names = [output.name for output in case.bundle.manifest.outputs]
    batches = [inputs_of(case.bundle, 1 + number) for number in range(8)]
    alone = [case.session.run(batch, names)[0] for batch in batches]

    def many(thread: int) -> int:
        order = np.random.default_rng(thread).integers(0, len(batches), 200)
        return sum(np.array_equal(case.session.run(batches[index], names)[0], alone[index]) for index in order)

    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(many, range(32))) == [200] * 32
    case.session.close()


@pytest.mark.gpu
@pytest.mark.slow
@pytest.mark.parametrize("graphs", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_tensors_on_this_gpu_go_in_and_come_out_without_the_host(backend: str, graphs: bool, tmp_path: Path) -> None:
    case = lenet5(backend, tmp_path, Speed(cuda_graphs=graphs))
    import torch
    from torch.utils.dlpack import from_dlpack

    names = [output.name for output in case.bundle.manifest.outputs]
    inputs = inputs_of(case.bundle, 8)
    wanted = case.session.run(inputs, names)[0]
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[no-untyped-call]
        for _ in range(4):
            late = {name: torch.from_numpy(value).to("cuda") for name, value in inputs.items()}
            torch.cuda._sleep(10_000_000)  # type: ignore[no-untyped-call] # some milliseconds: the input is not there yet
            written = {name: value * 1 for name, value in late.items()}
            (output,) = case.session.run_on_device(written, names)
            assert np.array_equal(from_dlpack(output).cpu().numpy(), wanted)
    case.session.close()


# --- that these tests skip with the truth, and nothing else


def test_without_a_driver_every_one_is_skipped_with_the_probes_words() -> None:
    if not probe_gpu().problem.startswith("no NVIDIA driver"):
        pytest.skip("this host has an NVIDIA driver")
    reasons = {skip_reason(precision, backend, probe_gpu()) for _, precision, backend in MATRIX}
    assert reasons == {"no NVIDIA driver (libcuda.so.1 is not found)"}


def test_the_matrix_is_every_network_precision_and_backend() -> None:
    assert len(MATRIX) == len(NETWORKS) * 4 * 3


@pytest.mark.parametrize("target", ["sm90", "sm100"])
def test_a_gpu_that_rtx_has_nothing_for_is_named(target: str) -> None:
    reason = skip_reason("fp16", "rtx", Gpu(target))
    assert reason == f"TensorRT-RTX runs on sm75, sm80, sm86, sm89, sm120, sm121; this GPU is {target}"


def test_an_absent_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    for name in ("tensorrt", "tensorrt_lean"):
        monkeypatch.setitem(sys.modules, name, None)
    reason = skip_reason("fp16", "tensorrt", Gpu("sm89"))
    assert reason == 'tensorrt is not installed. pip install "engineworks[tensorrt]"'
