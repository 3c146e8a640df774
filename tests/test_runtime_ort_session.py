"""ONNX Runtime at work: host arrays without a detour, arrays on the GPU bound where they lie, a lost GPU refused."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engineworks.runtime import Backend, BackendError, InputError
from engineworks.runtime.backend import open_session
from engineworks.runtime.ort_session import OrtSession

GRAPH = (Path(__file__).parent / "data" / "four_classes.onnx").read_bytes()
ON_CUDA = Backend("onnxruntime-cuda", "asked for")


def images(count: int = 2) -> Any:
    return np.random.default_rng(0).random((count, 3, 8, 8), np.float32)


class OnHost:
    """A torch tensor on the CPU, as far as it is used here."""

    def __init__(self, array: Any) -> None:
        self.array = array

    def __dlpack_device__(self) -> tuple[int, int]:
        return 1, 0

    def __dlpack__(self, **options: Any) -> Any:
        return self.array.__dlpack__(**options)


class OnGpu:
    """Another library's array on the GPU, which its own stream has yet to write."""

    def __init__(self, host: Any, content: Any, device: int = 0) -> None:
        self.address = host.driver.new(bytes([0xCD]) * content.nbytes, device)
        host.driver.queue(2, lambda: host.driver.write(self.address, content.tobytes()))
        self.__cuda_array_interface__ = {
            "shape": content.shape,
            "typestr": content.dtype.str,
            "data": (self.address, False),
            "version": 3,
            "stream": 2,
        }


class Binding:
    def __init__(self) -> None:
        self.inputs: dict[str, Any] = {}
        self.outputs: dict[str, Any] = {}
        self.complete = False

    def bind_cpu_input(self, name: str, array: Any) -> None:
        assert array.flags.c_contiguous
        self.inputs[name] = array

    def bind_input(self, name: str, *where: Any) -> None:
        self.inputs[name] = where

    def bind_output(self, name: str, *where: Any) -> None:
        self.outputs[name] = where

    def synchronize_outputs(self) -> None:
        self.complete = True

    def get_outputs(self) -> list[Any]:
        return [SimpleNamespace(numpy=lambda: "on the host", where=where) for where in self.outputs.values()]


class FakeSession:
    """A session on CUDA: what was bound, and what lay there when it ran."""

    def __init__(self, host: Any, error: Exception | None = None) -> None:
        self.host, self.error, self.bindings, self.read = host, error, list[Binding](), list[bytes]()

    def io_binding(self) -> Binding:
        self.bindings.append(Binding())
        return self.bindings[-1]

    def run(self, outputs: list[str], inputs: dict[str, Any]) -> list[Any]:
        if self.error is not None:
            raise self.error
        return ["plain"]

    def run_with_iobinding(self, binding: Binding) -> None:
        if self.error is not None:
            raise self.error
        for where in binding.inputs.values():
            if isinstance(where, tuple):
                _, _, dtype, shape, address = where
                self.read.append(self.host.driver.read(address, int(np.prod(shape)) * dtype.itemsize))


def test_host_arrays_take_the_plain_way_and_give_arrays() -> None:
    session = open_session(GRAPH, "cpu")
    assert session.device == "cpu"
    (found,) = session.run({"image": images()}, ["scores"])
    (same,) = session.run_on_device({"image": images()}, ["scores"])
    assert np.array_equal(found, np.from_dlpack(same))


def test_a_tensor_of_another_library_on_the_host_is_taken() -> None:
    session = open_session(GRAPH, "cpu")
    wanted = session.run({"image": images()}, ["scores"])[0]
    assert np.array_equal(session.run({"image": OnHost(images())}, ["scores"])[0], wanted)
    turned = OnHost(np.ascontiguousarray(images().transpose(0, 1, 3, 2)).transpose(0, 1, 3, 2))
    assert np.array_equal(session.run({"image": turned}, ["scores"])[0], wanted)


def test_something_else_is_refused_by_name() -> None:
    with pytest.raises(InputError, match="'image': expected a numpy array or one with __dlpack__, got list"):
        open_session(GRAPH, "cpu").run({"image": [[1.0]]}, ["scores"])


def test_an_array_on_a_gpu_is_not_for_the_cpu(fake_host: Any) -> None:
    with pytest.raises(InputError, match="'image': it lies on a GPU, and this session runs on the CPU"):
        open_session(GRAPH, "cpu").run({"image": OnGpu(fake_host, images())}, ["scores"])


def test_an_array_on_the_gpu_is_bound_where_it_lies_once_it_is_written(fake_host: Any) -> None:
    inner = FakeSession(fake_host)
    session = OrtSession(inner, ON_CUDA, 0)
    batch = OnGpu(fake_host, images())
    assert session.run({"image": batch, "more": images(1)}, ["scores"]) == ["on the host"]
    (binding,) = inner.bindings
    assert binding.inputs["image"] == ("cuda", 0, np.dtype("float32"), (2, 3, 8, 8), batch.address)
    assert binding.outputs == {"scores": ("cpu", 0)} and binding.complete
    assert inner.read == [images().tobytes()], "bound before its stream had written it"
    session.close()
    assert fake_host.driver.leaks() == {"device memory": 1}


def test_outputs_stay_on_the_gpu_where_they_are_asked_for(fake_host: Any) -> None:
    fake_host.driver.gpus.append(("NVIDIA L4", 8, 9))
    inner = FakeSession(fake_host)
    session = OrtSession(inner, ON_CUDA, 1)
    (output,) = session.run_on_device({"image": images()}, ["scores"])
    assert output.where == ("cuda", 1)  # type: ignore[attr-defined]
    assert session.device == "cuda:1" and inner.bindings[0].complete


def test_an_array_on_another_gpu_is_refused(fake_host: Any) -> None:
    fake_host.driver.gpus.append(("NVIDIA L4", 8, 9))
    session = OrtSession(FakeSession(fake_host), ON_CUDA, 0)
    with pytest.raises(InputError, match=r"'image': it lies on another GPU than cuda:0"):
        session.run({"image": OnGpu(fake_host, images(), device=1)}, ["scores"])


def test_what_the_provider_raises_becomes_our_own_error_in_one_line() -> None:
    session = OrtSession(FakeSession(None, RuntimeError("INVALID_ARGUMENT: rank\nmore\nlines")), ON_CUDA)
    for _ in range(2):
        with pytest.raises(BackendError) as caught:
            session.run({}, [])
        assert str(caught.value) == "onnxruntime-cuda failed: INVALID_ARGUMENT: rank"


def test_a_silent_failure_is_told_by_its_type() -> None:
    with pytest.raises(BackendError, match=r"^x failed: RuntimeError$"):
        OrtSession(FakeSession(None, RuntimeError()), Backend("x", "")).run({}, [])


@pytest.mark.parametrize(
    "words",
    [
        "CUDA error 700",
        "CUDA failure 719: unspecified launch failure ; GPU=0",
        "CUDNN_FE failure 11: CUDNN_BACKEND_API_FAILED",
        "CUBLAS failure 14: CUBLAS_STATUS_INTERNAL_ERROR",
    ],
)
@pytest.mark.parametrize("where", ["run", "run_on_device"])
def test_after_an_error_of_cuda_every_later_call_is_refused(fake_host: Any, words: str, where: str) -> None:
    inner = FakeSession(fake_host, RuntimeError(f"Non-zero status: {words}\nmore"))
    session = OrtSession(inner, ON_CUDA, 0)
    with pytest.raises(BackendError, match="onnxruntime-cuda failed: Non-zero status: "):
        getattr(session, where)({"image": images()}, ["scores"])
    inner.error = None
    for method in (session.run, session.run_on_device):
        with pytest.raises(BackendError, match=r"onnxruntime-cuda is lost since a CUDA error: .* Start a new process"):
            method({"image": images()}, ["scores"])


@pytest.mark.parametrize("words", ["CUDA failure 2: out of memory", "Failed to allocate memory for requested buffer"])
def test_want_of_memory_costs_one_call(fake_host: Any, words: str) -> None:
    inner = FakeSession(fake_host, RuntimeError(words))
    session = OrtSession(inner, ON_CUDA, 0)
    with pytest.raises(BackendError, match=words):
        session.run({"image": images()}, ["scores"])
    inner.error = None
    assert session.run({"image": images()}, ["scores"]) == ["plain"]


def test_a_closed_session_says_so_and_may_be_closed_again() -> None:
    session = open_session(GRAPH, "cpu")
    session.close()
    session.close()
    with pytest.raises(BackendError, match=r"^onnxruntime-cpu: this session is closed\. Open the bundle again"):
        session.run({"image": images()}, ["scores"])


def test_the_number_of_threads_does_not_change_the_answer() -> None:
    one, two = (open_session(GRAPH, "cpu", threads=threads).run({"image": images(4)}, ["scores"]) for threads in (1, 2))
    # float32: a mean of 64 values in [0, 1] and a sum of 4, each to 2⁻²⁴ of its size at every step
    assert np.allclose(one[0], two[0], rtol=0, atol=1e-6)
