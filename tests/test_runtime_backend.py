"""The backend is what truly opens here; every fallback says why, and is refused where it must be."""

import itertools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engineworks.runtime import Backend, BackendError, Bundle, BundleError, backend, load, open_bundle, ort_session
from engineworks.runtime.backend import BackendSession, open_bundle_session, open_session
from engineworks.runtime.cuda import Gpu, probe_gpu
from engineworks.runtime.manifest import EngineRecord
from engineworks.runtime.trt_runtime import absent

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

    def InferenceSession(self, graph: bytes | str, options: Any, providers: list[Any]) -> Any:
        assert all(name[1]["use_tf32"] == "0" for name in providers if CUDA in name), "float32 is to be float32"
        providers = [name if isinstance(name, str) else name[0] for name in providers]
        self.opened.append((graph if isinstance(graph, bytes) else Path(graph).read_bytes(), providers))
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


# --- a bundle: engines first, where one was made for this GPU


RTX = EngineRecord("engines/rtx.engine", "rtx", "1.7.1.116", ("sm89",), 3, {})
FULL = replace(RTX, flavour="tensorrt", version="11.4.0.106")
NO_TENSORRT = (
    'tensorrt: tensorrt is not installed. pip install "engineworks[tensorrt]"; '
    "bundle four-fp16 has no tensorrt engine. Re-run export-model --engine tensorrt"
)
NO_RTX = 'rtx: tensorrt_rtx is not installed. pip install "engineworks[rtx]"'


@pytest.fixture
def open_here(
    fake_host: Any, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., BackendSession]:
    """Open a bundle with these engines on the fake host, whose onnxruntime has these providers."""
    number = itertools.count()

    def opened(*engines: EngineRecord, listed: list[str] | None = None, **options: Any) -> BackendSession:
        ort = FakeOrt([CUDA, CPU] if listed is None else listed)
        monkeypatch.setattr(ort_session, "onnxruntime", lambda: ort)
        path = make_bundle(f"bundle-{next(number)}", engines=engines)
        return open_bundle_session(open_bundle(path), **options)

    return opened


Open = Callable[..., BackendSession]


def test_an_engine_for_this_gpu_comes_before_everything_else(open_here: Open, fake_host: Any) -> None:
    fake_host.install()
    found = open_here(RTX).backend
    assert (found.name, found.passed_over) == ("rtx", (NO_TENSORRT,))


def test_tensorrt_comes_before_rtx(open_here: Open, fake_host: Any) -> None:
    fake_host.install()
    fake_host.install("tensorrt-11.4")
    assert open_here(RTX, FULL).backend.name == "tensorrt"
    assert open_here(RTX, FULL, backend="rtx").backend.name == "rtx"


def test_without_an_engine_that_opens_cuda_is_taken_and_every_reason_is_told(open_here: Open, fake_host: Any) -> None:
    found = open_here(RTX).backend
    assert found == Backend(
        "onnxruntime-cuda",
        "a GPU is present and the CUDA provider loaded",
        (NO_TENSORRT, NO_RTX),
    )


def test_an_engine_that_is_refused_is_passed_over_with_its_cause(open_here: Open, fake_host: Any) -> None:
    fake_host.install(fails={"deserialize_cuda_engine": None}, log=(("ERROR", "no kernel image"),))
    found = open_here(RTX).backend
    assert found.name == "onnxruntime-cuda"
    assert found.passed_over[1] == "rtx: bundle four-fp16: tensorrt_rtx refused the engine: no kernel image"


@pytest.mark.parametrize("installed", [True, False])
def test_strict_refuses_to_pass_over_an_engine_for_this_gpu(open_here: Open, fake_host: Any, installed: bool) -> None:
    if installed:
        fake_host.install(fails={"deserialize_cuda_engine": None})
    with pytest.raises(BackendError, match=r"^strict: the bundle has an engine for this GPU, and .*rtx: ") as caught:
        open_here(RTX, strict=True)
    assert ("refused the engine" if installed else "is not installed") in str(caught.value)


def test_strict_takes_cuda_where_no_engine_was_made_for_this_gpu(open_here: Open, fake_host: Any) -> None:
    assert open_here(replace(RTX, targets=("sm120",)), strict=True).backend.name == "onnxruntime-cuda"
    assert open_here(strict=True).backend.name == "onnxruntime-cuda"
    with pytest.raises(BackendError, match="this onnxruntime has no CUDA provider"):
        open_here(strict=True, listed=[CPU])


def test_onnxruntime_alone_passes_nothing_over(open_here: Open, fake_host: Any) -> None:
    fake_host.install()
    assert open_here(RTX, backend="onnxruntime").backend.passed_over == ()
    assert open_here(RTX, backend="onnxruntime", device="cuda").backend == Backend("onnxruntime-cuda", "asked for")
    assert fake_host.plan.events == []


def test_the_cpu_touches_no_driver_and_no_engine(open_here: Open, fake_host: Any) -> None:
    fake_host.install()
    assert open_here(RTX, device="cpu").backend == Backend("onnxruntime-cpu", "asked for")
    assert (fake_host.driver.calls, fake_host.plan.events) == ([], [])


@pytest.mark.parametrize("backend_name", ["tensorrt", "rtx"])
def test_an_engine_on_the_cpu_is_a_contradiction(open_here: Open, backend_name: str) -> None:
    with pytest.raises(BackendError, match=rf"^backend {backend_name} runs on a GPU alone, and device='cpu'"):
        open_here(RTX, backend=backend_name, device="cpu")


def test_an_unknown_backend_is_refused(open_here: Open) -> None:
    with pytest.raises(BackendError, match=r"^backend: expected one of auto, onnxruntime, tensorrt, rtx, got 'trt'\.$"):
        open_here(backend="trt")


def test_a_second_gpu_is_taken_by_its_number(open_here: Open, fake_host: Any) -> None:
    fake_host.driver.gpus.append(("NVIDIA L40S", 8, 9))
    fake_host.install()
    session = open_here(RTX, device="cuda:1")
    assert (session.device, session.backend.why) == ("cuda:1", "the bundle has an engine for this GPU, NVIDIA L40S")
    with pytest.raises(BackendError, match=r"^device cuda:2: .*this host has 2 GPUs, and none is number 2"):
        open_here(RTX, device="cuda:2")


def test_cuda_that_was_asked_for_is_never_the_cpu(open_here: Open, fake_host: Any) -> None:
    fake_host.driver.gpus.clear()
    with pytest.raises(BackendError, match=r"^device cuda: .*shows 0 GPUs"):
        open_here(RTX, device="cuda")


def test_a_wrong_number_is_an_error_and_no_reason_to_pass_an_engine_over(open_here: Open, fake_host: Any) -> None:
    fake_host.install()
    with pytest.raises(BackendError, match="contexts: expected 1 or more, got 0"):
        open_here(RTX, contexts=0)


def test_a_damaged_engine_is_refused_before_anything_of_tensorrt_sees_it(
    fake_host: Any, make_bundle: Callable[..., Path]
) -> None:
    fake_host.install()
    path = make_bundle(engines=(RTX,))
    engine = path / RTX.file
    engine.write_bytes(engine.read_bytes()[:-1] + b"!")
    with pytest.raises(BundleError, match=r"engines/rtx\.engine was edited or damaged"):
        open_bundle_session(open_bundle(path))
    assert fake_host.plan.events == []


def test_every_file_is_read_once(fake_host: Any, make_bundle: Callable[..., Path], monkeypatch: Any) -> None:
    fake_host.install()
    real, seen = Bundle.read, list[str]()

    def read(self: Bundle, name: str) -> bytes:
        seen.append(name)
        return real(self, name)

    monkeypatch.setattr(Bundle, "read", read)
    open_bundle_session(open_bundle(make_bundle(engines=(RTX,))))
    assert sorted(seen) == ["engines/rtx.engine", "model.onnx", "reference.npz"]


def test_here_every_engine_that_is_passed_over_says_why(make_bundle: Callable[..., Path]) -> None:
    if not probe_gpu().problem:
        pytest.skip("this host has a GPU")
    session = open_bundle_session(open_bundle(make_bundle()))
    assert session.backend.name == "onnxruntime-cpu"
    kinds = [reason.partition(": ")[0] for reason in session.backend.passed_over]
    assert kinds == ["tensorrt", "rtx", "cuda"]
    assert all(reason.partition(": ")[2].startswith(probe_gpu().problem) for reason in session.backend.passed_over[:2])
    if absent("tensorrt"):
        assert session.backend.passed_over[0].endswith(absent("tensorrt"))


@pytest.mark.gpu
def test_a_gpu_that_is_here_is_used_under_strict() -> None:
    if problem := probe_gpu().problem:
        pytest.skip(problem)
    assert open_session(GRAPH, strict=True).backend.name == "onnxruntime-cuda"
