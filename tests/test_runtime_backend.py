"""The provider is chosen by what truly loads; every fallback says why, and is refused where it must be."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engineworks.runtime import Backend, BackendError, BundleError, backend, load, ort_session
from engineworks.runtime.backend import OrtSession, open_session
from engineworks.runtime.cuda import Gpu, probe_gpu

GRAPH = (Path(__file__).parent / "data" / "four_classes.onnx").read_bytes()
CUDA, CPU = "CUDAExecutionProvider", "CPUExecutionProvider"
NO_DRIVER = Gpu(None, "no NVIDIA driver (libcuda.so.1 is not found)")
ONE_GPU = Gpu("sm89", "", "NVIDIA L4")
DID_NOT_LOAD = "the CUDA provider did not load (its libraries are missing or of another version)"


class FakeOrt:
    """onnxruntime, as far as it is used here: what it lists, what its sessions end up on, or what they raise."""

    def __init__(self, listed: list[str], ends_on: list[str] | None = None, raises: Exception | None = None) -> None:
        self.listed, self.ends_on, self.raises = listed, ends_on, raises
        self.opened: list[tuple[bytes, list[str]]] = []
        self.preloaded = 0
        self.SessionOptions = lambda: SimpleNamespace(add_session_config_entry=lambda key, value: None)

    def get_available_providers(self) -> list[str]:
        return self.listed

    def preload_dlls(self) -> None:
        self.preloaded += 1

    def InferenceSession(self, graph: bytes, options: Any, providers: list[Any]) -> Any:
        assert all(name[1]["use_tf32"] == "0" for name in providers if CUDA in name), "float32 is to be float32"
        providers = [name if isinstance(name, str) else name[0] for name in providers]
        self.opened.append((graph, providers))
        if self.raises is not None and CUDA in providers:
            raise self.raises
        ends_on = self.ends_on if self.ends_on is not None and CUDA in providers else providers
        return SimpleNamespace(get_providers=lambda: ends_on)


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeOrt]:
    """A host with this GPU, or none, and this onnxruntime on it."""

    def make(ort: FakeOrt, gpu: Gpu) -> FakeOrt:
        monkeypatch.setattr(ort_session, "onnxruntime", lambda: ort)
        monkeypatch.setattr(backend, "probe_gpu", lambda index: gpu)
        return ort

    return make


Host = Callable[..., FakeOrt]


@pytest.mark.parametrize("device", ["gpu", "CUDA", "", "cuda:", "cuda:x", "cuda:-1", "cpu:0", " cpu", None])
def test_an_unknown_device_is_refused(device: Any) -> None:
    with pytest.raises(BackendError) as caught:
        open_session(GRAPH, device)
    assert str(caught.value) == f"device: expected auto, cpu, cuda or cuda:N, got {device!r}."


@pytest.mark.parametrize("graph", [b"", b"junk", GRAPH[:100], bytes(1000)])
@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_broken_graph_is_refused_in_one_line(graph: bytes, device: Any) -> None:
    with pytest.raises(BackendError, match=r"^onnxruntime refuses the graph: ") as caught:
        open_session(graph, device)
    assert "\n" not in str(caught.value)


def test_the_cpu_that_was_asked_for_is_not_called_a_fallback() -> None:
    assert open_session(GRAPH, "cpu").backend == Backend("onnxruntime-cpu", "asked for")


def test_asking_for_the_cpu_asks_no_driver(host: Host) -> None:
    ort = host(FakeOrt([CUDA, CPU]), ONE_GPU)
    open_session(GRAPH, "cpu")
    assert (ort.opened, ort.preloaded) == ([(GRAPH, [CPU])], 0)


def test_cuda_that_is_listed_without_a_driver_is_passed_over_with_the_reason(host: Host) -> None:
    ort = host(FakeOrt([CUDA, CPU]), NO_DRIVER)
    found = open_session(GRAPH).backend
    assert found == Backend("onnxruntime-cpu", "nothing faster works here", (f"cuda: {NO_DRIVER.problem}",))
    assert ort.opened == [(GRAPH, [CPU])]


def test_a_backend_tells_its_story_in_one_line() -> None:
    told = str(Backend("onnxruntime-cpu", "nothing faster works here", ("cuda: no driver", "rtx: none")))
    assert told == "onnxruntime-cpu (nothing faster works here; passed over: cuda: no driver; rtx: none)"
    assert str(Backend("onnxruntime-cuda", "asked for")) == "onnxruntime-cuda (asked for)"


@pytest.mark.parametrize(
    ("device", "why"), [("cuda", "asked for"), ("auto", "a GPU is present and the CUDA provider loaded")]
)
def test_cuda_that_loads_is_taken(host: Host, device: Any, why: str) -> None:
    ort = host(FakeOrt([CUDA, CPU]), ONE_GPU)
    assert open_session(GRAPH, device, strict=True).backend == Backend("onnxruntime-cuda", why)
    assert ort.preloaded == 1


def test_a_session_that_fell_back_without_a_word_is_found_out(host: Host) -> None:
    host(FakeOrt([CUDA, CPU], ends_on=[CPU]), ONE_GPU)
    found = open_session(GRAPH).backend
    assert found == Backend("onnxruntime-cpu", "nothing faster works here", (f"cuda: {DID_NOT_LOAD}",))


@pytest.mark.parametrize(("device", "strict"), [("cuda", False), ("cuda", True), ("auto", True)])
def test_a_fallback_is_refused_where_cuda_was_asked_for_or_strict_is(host: Host, device: Any, strict: bool) -> None:
    host(FakeOrt([CUDA, CPU], ends_on=[CPU]), ONE_GPU)
    with pytest.raises(BackendError) as caught:
        open_session(GRAPH, device, strict=strict)
    assert str(caught.value) == f"device cuda: {DID_NOT_LOAD}. Mend that, or open the bundle with device='cpu'."


def test_strict_refuses_an_onnxruntime_without_cuda_where_a_gpu_is_present(host: Host) -> None:
    host(FakeOrt([CPU]), ONE_GPU)
    with pytest.raises(BackendError, match=r"this onnxruntime has no CUDA provider \(pip install onnxruntime-gpu\)"):
        open_session(GRAPH, strict=True)


@pytest.mark.parametrize("listed", [[CPU], [CUDA, CPU]])
def test_strict_takes_the_cpu_where_there_is_no_gpu(host: Host, listed: list[str]) -> None:
    host(FakeOrt(listed), NO_DRIVER)
    assert open_session(GRAPH, strict=True).backend.name == "onnxruntime-cpu"


def test_cuda_that_was_asked_for_is_refused_without_a_driver(host: Host) -> None:
    host(FakeOrt([CUDA, CPU]), NO_DRIVER)
    with pytest.raises(BackendError) as caught:
        open_session(GRAPH, "cuda")
    assert str(caught.value) == f"device cuda: {NO_DRIVER.problem}. Mend that, or open the bundle with device='cpu'."


def test_what_cuda_raised_is_the_reason_that_is_told(host: Host) -> None:
    host(FakeOrt([CUDA, CPU], raises=RuntimeError("CUDA failure 2: out of memory\nat line 9")), ONE_GPU)
    assert open_session(GRAPH).backend.passed_over == ("cuda: CUDA failure 2: out of memory",)
    with pytest.raises(BackendError, match=r"^device cuda: CUDA failure 2: out of memory\. Mend that"):
        open_session(GRAPH, "cuda")


def test_on_the_cpu_the_graph_made_for_it_runs_and_the_fallback_is_still_told(host: Host) -> None:
    ort = host(FakeOrt([CUDA, CPU]), NO_DRIVER)
    found = open_session(b"bf16", cpu_graph=b"for the cpu").backend
    assert ort.opened == [(b"for the cpu", [CPU])]
    assert found.passed_over == (f"cuda: {NO_DRIVER.problem}",)


def test_on_cuda_the_graph_made_for_the_cpu_is_not_used(host: Host) -> None:
    ort = host(FakeOrt([CUDA, CPU]), ONE_GPU)
    open_session(b"bf16", cpu_graph=b"for the cpu")
    assert [graph for graph, _ in ort.opened] == [b"bf16"]


@pytest.mark.parametrize("device", ["auto", "cpu"])
def test_a_bundle_with_a_graph_for_the_cpu_runs_that_one(
    make_bundle: Callable[..., Path], contents: dict[str, bytes], host: Host, device: Any
) -> None:
    ort = host(FakeOrt([CUDA, CPU]), NO_DRIVER)
    files = contents | {"model.onnx": b"bf16", "cpu.onnx": contents["model.onnx"]}
    load(make_bundle(files=files, graph={"cpu": "cpu.onnx"}), device=device)
    assert ort.opened == [(contents["model.onnx"], [CPU])]


def test_a_graph_for_the_cpu_that_is_not_there_is_named(make_bundle: Callable[..., Path]) -> None:
    with pytest.raises(BundleError, match=r"has no cpu\.onnx; it holds"):
        load(make_bundle(graph={"cpu": "cpu.onnx"}))


def test_an_absent_onnxruntime_is_one_sentence_with_the_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxruntime", None)
    with pytest.raises(
        BackendError, match=r"^onnxruntime cannot be imported \(.*\)\. pip install engineworks brings it"
    ):
        open_session(GRAPH)


def test_what_the_provider_raises_becomes_our_own_error_in_one_line() -> None:
    def run(outputs: list[str], inputs: dict[str, Any]) -> None:
        raise RuntimeError("CUDA error 700\nmore\nlines")

    session = OrtSession(SimpleNamespace(run=run), Backend("onnxruntime-cuda", "asked for"))
    with pytest.raises(BackendError) as caught:
        session.run({}, [])
    assert str(caught.value) == "onnxruntime-cuda failed: CUDA error 700"


def test_a_silent_failure_is_told_by_its_type() -> None:
    def run(outputs: list[str], inputs: dict[str, Any]) -> None:
        raise RuntimeError

    with pytest.raises(BackendError, match=r"^x failed: RuntimeError$"):
        OrtSession(SimpleNamespace(run=run), Backend("x", "")).run({}, [])


def test_the_number_of_threads_does_not_change_the_answer() -> None:
    image = np.random.default_rng(0).random((4, 3, 8, 8), np.float32)
    one, two = (open_session(GRAPH, "cpu", threads=threads).run({"image": image}, ["scores"]) for threads in (1, 2))
    assert np.allclose(one[0], two[0], rtol=0, atol=1e-6)


@pytest.mark.gpu
def test_a_gpu_that_is_here_is_used_under_strict() -> None:
    if problem := probe_gpu().problem:
        pytest.skip(problem)
    assert open_session(GRAPH, strict=True).backend.name == "onnxruntime-cuda"
