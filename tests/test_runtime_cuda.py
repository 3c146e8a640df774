"""The driver: what it is asked, held against its header, and what it answers where there is no GPU."""

import ctypes
import gc
import json
import re
import shutil
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engineworks.runtime import BackendError, cuda
from engineworks.runtime.cuda import Device, Gpu, Gpus, open_driver, probe_gpu, probe_gpus
from engineworks.runtime.errors import CudaError

HEADER = json.loads((Path(__file__).parent / "snapshots" / "cuda-driver-13.5.json").read_text("utf-8"))["functions"]
NO_DRIVER = "no NVIDIA driver (libcuda.so.1 is not found)"

# What each of our ctypes may stand for in the header.
HANDLES = {"CUcontext", "CUstream", "CUevent", "CUgraph", "CUgraphExec", "void *", "const void *"}
STANDS_FOR = {
    ctypes.c_int: {"int", "CUdevice", "CUresult", "CUstreamCaptureMode", "CUpointer_attribute"},
    ctypes.c_uint: {"unsigned int"},
    ctypes.c_size_t: {"size_t"},
    ctypes.c_uint64: {"CUdeviceptr", "unsigned long long", "size_t"},  # ctypes has one type for all three here
    ctypes.c_void_p: HANDLES,
    ctypes.POINTER(ctypes.c_int): {"int *", "CUdevice *"},
    ctypes.POINTER(ctypes.c_uint64): {"CUdeviceptr *"},
    ctypes.POINTER(ctypes.c_char_p): {"const char * *"},
    ctypes.POINTER(ctypes.c_void_p): {f"{name} *" for name in HANDLES},
}


@pytest.mark.parametrize("name", cuda.PROTOTYPES)
def test_every_prototype_is_the_headers(name: str) -> None:
    ours, theirs = cuda.PROTOTYPES[name], HEADER[name]
    assert len(ours) == len(theirs)
    assert [(kind, arg) for kind, arg in zip(ours, theirs, strict=True) if arg not in STANDS_FOR[kind]] == []


def test_every_function_that_is_named_is_the_headers_and_has_a_prototype_or_is_the_probes() -> None:
    source = Path(cuda.__file__).read_text("utf-8")
    assert set(re.findall(r'"(cu[A-Z]\w+)"', source)) == set(cuda.PROTOTYPES)
    assert set(re.findall(r"library\.(cu[A-Z]\w+)", source)) <= HEADER.keys()


# --- the probe


def probe_without(monkeypatch: pytest.MonkeyPatch, error: str) -> Gpus:
    def absent(name: str) -> None:
        raise OSError(error)

    monkeypatch.setattr(ctypes, "CDLL", absent)
    return probe_gpus()


def test_no_driver_is_a_reason_and_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    missing = "libcuda.so.1: cannot open shared object file: No such file or directory"
    assert probe_without(monkeypatch, missing) == Gpus((), None, NO_DRIVER)
    assert probe_gpu(1) == Gpu(None, NO_DRIVER, index=1)
    with pytest.raises(BackendError, match=r"^no NVIDIA driver"):
        open_driver()


def test_a_driver_that_does_not_load_is_told_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    found = probe_without(monkeypatch, "libcuda.so.1: wrong ELF class: ELFCLASS32")
    assert found.problem == "no NVIDIA driver (libcuda.so.1 does not load: libcuda.so.1: wrong ELF class: ELFCLASS32)"


def test_gpus_are_told_by_name_and_compute_capability(fake_host: Any) -> None:
    fake_host.driver.gpus[:] = [("NVIDIA H100", 9, 0), ("NVIDIA GB10", 12, 1)]
    assert probe_gpus() == Gpus((Gpu("sm90", "", "NVIDIA H100"), Gpu("sm121", "", "NVIDIA GB10", 1)), "13.1")
    assert probe_gpu() == Gpu("sm90", "", "NVIDIA H100")
    assert probe_gpu(1).name == "NVIDIA GB10"
    assert (probe_gpu(1).capability, probe_gpu(1).memory_mib) == ((12, 1), 24_576)
    assert probe_gpu(2) == Gpu(None, "this host has 2 GPUs, and none is number 2", index=2)


def library(*, init: int = 0, status: int = 0, count: int = 1, attribute: int = 0) -> Any:
    def get_count(pointer: Any) -> int:
        pointer._obj.value = count
        return status

    return SimpleNamespace(
        cuInit=lambda flags: init,
        cuDriverGetVersion=lambda version: 1,
        cuDeviceGetCount=get_count,
        cuDeviceGet=lambda device, index: 0,
        cuDeviceGetAttribute=lambda value, which, device: attribute,
    )


@pytest.mark.parametrize(
    ("answers", "problem"),
    [
        ({"init": 100}, "the NVIDIA driver finds no usable GPU (cuInit gave error 100)"),
        ({"count": 0}, "the NVIDIA driver shows 0 GPUs (cuDeviceGetCount gave error 0)"),
        ({"status": 3, "count": 2}, "the NVIDIA driver shows 0 GPUs (cuDeviceGetCount gave error 3)"),
        ({"attribute": 1}, "the NVIDIA driver does not tell GPU 0's compute capability (error 1)"),
    ],
)
def test_a_driver_that_refuses_is_a_reason(
    monkeypatch: pytest.MonkeyPatch, answers: dict[str, int], problem: str
) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: library(**answers))
    assert probe_gpu() == Gpu(None, problem)
    assert probe_gpus().problem == problem


def test_exporting_and_running_ask_the_same_probe() -> None:
    from engineworks.export import trt_compilers

    assert trt_compilers.probe_gpu is probe_gpu


# --- a device


@pytest.fixture
def device(fake_host: Any) -> Device:
    return Device(open_driver(), 0)


def test_an_old_driver_is_told_with_the_function_that_it_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: SimpleNamespace(cuInit=SimpleNamespace()))
    with pytest.raises(BackendError, match=r"has no cuGetErrorString: it is older than CUDA 11\.4\. Update the driver"):
        open_driver()


def test_an_error_names_the_function_the_words_and_the_number(device: Device, fake_host: Any) -> None:
    fake_host.driver.fails["cuMemAlloc_v2"] = 2
    with device.current(), pytest.raises(CudaError) as caught:
        device.allocate(8)
    assert str(caught.value) == "cuMemAlloc_v2: out of memory (CUDA error 2)"
    assert (caught.value.status, caught.value.is_passing) == (2, True)
    assert not CudaError("cuMemFree_v2", 2, "").is_passing and not CudaError("cuMemAlloc_v2", 700, "").is_passing


def test_the_context_is_current_inside_and_not_outside(device: Device, fake_host: Any) -> None:
    with pytest.raises(AssertionError, match="no context is current"):
        device.allocate(8)
    with device.current(), device.current():
        device.free(device.allocate(8))
    with pytest.raises(AssertionError, match="no context is current"):
        device.make_stream()


def test_the_context_is_given_back_with_the_last_reference(fake_host: Any) -> None:
    device = Device(open_driver(), 0)
    assert fake_host.driver.contexts == 1
    del device
    gc.collect()
    assert fake_host.driver.contexts == 0


def test_a_stream_waits_for_another_without_the_host(device: Device, fake_host: Any) -> None:
    done: list[str] = []
    with device.current():
        first, second = device.make_stream(), device.make_stream()
        fake_host.driver.queue(first, lambda: done.append("first"))
        device.wait_for(second, first)
        fake_host.driver.queue(first, lambda: done.append("later"))
        fake_host.driver.queue(second, lambda: done.append("second"))
        assert done == []
        device.synchronise(second)
    assert done == ["first", "second"]
    assert fake_host.driver.leaks() == {"streams": 2}


def test_a_capture_that_fails_inside_leaves_the_stream_as_before(device: Device, fake_host: Any) -> None:
    graph: list[int] = []
    with device.current():
        stream = device.make_stream()
        with pytest.raises(ZeroDivisionError), device.captured(stream, graph):
            _ = 1 // 0
        device.synchronise(stream)
    assert (graph, fake_host.driver.leaks()) == ([], {"streams": 1})


# --- the fake itself must not be kinder than the real one


def test_the_fake_has_no_function_that_the_header_lacks(fake_host: Any) -> None:
    for name in ("cuMemAlloc", "cuMemAllocHost", "cuCtxPushCurrent", "cuNothing"):
        assert name not in HEADER or name == "cuMemAllocHost"
        with pytest.raises(AttributeError):
            getattr(fake_host.driver, name)


def test_the_fake_finds_memory_that_is_not_there(device: Device, fake_host: Any) -> None:
    with device.current():
        address, stream = device.allocate(16), device.make_stream()
        pinned = device.allocate_host(32)
        for size, source, words in ((32, address, "out of bounds"), (8, address - 64, "out of bounds")):
            device.to_host(pinned, source, size, stream)
            with pytest.raises(AssertionError, match=words):
                device.synchronise(stream)
        device.to_host(0x1234, address, 8, stream)
        with pytest.raises(AssertionError, match="not pinned"):
            device.synchronise(stream)
        device.to_host(pinned, address, 8, stream)
        device.free_host(pinned)
        with pytest.raises(AssertionError, match="not pinned, or was freed"):
            device.synchronise(stream)
        device.free(address)
        with pytest.raises(AssertionError, match="freed twice"):
            device.free(address)


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """The library of ``data/stub_cuda.c``, compiled."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        pytest.skip("no C compiler")
    made = tmp_path_factory.mktemp("stub") / "libcuda.so.1"
    source = Path(__file__).parent / "data" / "stub_cuda.c"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(made), str(source)], check=True)
    return ctypes.CDLL(str(made))


def test_every_function_keeps_every_bit_against_a_compiled_library(monkeypatch: pytest.MonkeyPatch, stub: Any) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: stub)
    assert probe_gpus() == Gpus((Gpu("sm89", "", "Stub"),), "13.1")
    device, content, graph = Device(open_driver(), 0), bytes(range(256)), list[int]()
    with device.current():
        stream = device.make_stream()
        out, back = device.allocate_host(256), device.allocate_host(256)
        first, second = device.allocate(256), device.allocate(256)
        ctypes.memmove(out, content, 256)
        device.to_device(first, out, 256, stream)
        device.copy(second, first, 256, stream)
        device.to_host(back, second, 256, stream)
        device.wait_for(stream, 2)
        device.synchronise(stream)
        assert ctypes.string_at(back, 256) == content and stream > 1 << 32
        assert device.owner_of(first) == 3
        with device.captured(stream, graph):
            pass
        device.launch(graph[0], stream)
        device.destroy_graph(graph[0])
        with pytest.raises(CudaError, match=r"^cuMemAlloc_v2: the stub refuses \(CUDA error 2\)$"):
            device.allocate(1 << 50)
        for address in (first, second):
            device.free(address)
        for address in (out, back):
            device.free_host(address)
        device.destroy_stream(stream)


@pytest.mark.gpu
def test_bytes_come_back_from_a_real_gpu_as_they_went() -> None:
    if problem := probe_gpu().problem:
        pytest.skip(problem)
    device = Device(open_driver(), 0)
    content = bytes(range(256)) * 64
    with device.current():
        stream, size = device.make_stream(), len(content)
        out, back = device.allocate_host(size), device.allocate_host(size)
        first, second = device.allocate(size), device.allocate(size)
        ctypes.memmove(out, content, size)
        device.to_device(first, out, size, stream)
        device.copy(second, first, size, stream)
        device.to_host(back, second, size, stream)
        device.synchronise(stream)
        assert ctypes.string_at(back, size) == content
        assert device.owner_of(first) == 0
        for address in (first, second):
            device.free(address)
        for address in (out, back):
            device.free_host(address)
        device.destroy_stream(stream)
