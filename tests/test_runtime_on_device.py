"""Arrays on the session's own GPU go in and come out of ``Session.infer`` without the host, on a fake GPU."""

import contextlib
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engineworks.runtime import BackendError, InputError, Session, load
from engineworks.runtime.dlpack import CUDA, make_capsule
from engineworks.runtime.manifest import EngineRecord
from engineworks.runtime.on_device import lie_on, outline

Floats = npt.NDArray[Any]
CALLERS_STREAM = 2  # the fake knows the per-thread default stream by its number in cuda.h
TO_HOST, TO_GPU = "cuMemcpyDtoHAsync_v2", "cuMemcpyHtoDAsync_v2"


def images(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((count, 3, 8, 8), np.float32)


class Tensor:
    """A torch tensor on the fake GPU: its content is written by work that the caller's stream has yet to do."""

    def __init__(self, host: Any, content: Floats, device: int = 0, dtype: str = "") -> None:
        address = self.address = host.driver.new(bytes([0xCD]) * content.nbytes, device)
        self.shape, self.dtype, self.device = content.shape, f"torch.{dtype or content.dtype}", f"cuda:{device}"
        self._host, self._number, self._dtype = host, device, content.dtype
        self.calls: list[str] = []
        host.driver.queue(CALLERS_STREAM, lambda: host.driver.write(address, content.tobytes()))

    def detach(self) -> "Tensor":
        self.calls.append("detach")
        return self

    def contiguous(self) -> "Tensor":
        self.calls.append("contiguous")
        return self

    def cpu(self) -> Any:
        self.calls.append("cpu")
        raise RuntimeError("copied to the host")

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._number

    def __dlpack__(self, *, stream: Any = None) -> Any:
        driver = self._host.driver
        driver.queue(stream, lambda: driver._drain(CALLERS_STREAM, None))  # torch makes the consumer's stream wait
        return make_capsule(self.address, self.shape, self._dtype, (CUDA, self._number), self)


class Cupylike:
    """An array with the CUDA array interface alone."""

    def __init__(self, host: Any, content: Floats, strides: Any = None) -> None:
        self.address = host.driver.new(content.tobytes(), 0)
        self.__cuda_array_interface__ = {
            "shape": content.shape, "typestr": content.dtype.str, "data": (self.address, False), "version": 3,
            "strides": strides, "stream": None,
        }  # fmt: skip


@pytest.fixture
def make(fake_host: Any, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> Callable[..., Session]:
    """Load a bundle whose engine runs on the fake GPU, beside a torch that knows its tensors."""
    torch = SimpleNamespace(Tensor=Tensor, from_dlpack=lambda output: ("tensor of", output))
    monkeypatch.setitem(sys.modules, "torch", torch)
    fake_host.install("tensorrt_rtx-1.7")

    def loaded(**options: Any) -> Session:
        record = EngineRecord("engines/rtx.engine", "rtx", "1.7.1.116", ("sm89",), 3, {})
        session = load(make_bundle(engines=(record,)), backend="rtx", **options)
        fake_host.driver.calls.clear()
        return session

    return loaded


Make = Callable[..., Session]


def test_tensors_are_answered_by_tensors_and_nothing_passes_the_host(make: Make, fake_host: Any) -> None:
    with make() as session:
        batch = Tensor(fake_host, images(3))
        kind, output = session.infer(batch)
        copies = [call for call in fake_host.driver.calls if call in {TO_HOST, TO_GPU}]
        assert (kind, copies) == ("tensor of", [])
        assert np.array_equal(output.numpy(), fake_host.trt.expected(images(3)))
        assert fake_host.plan.addresses[-1]["image"] == batch.address
        assert batch.calls == ["detach", "contiguous"]
        assert (session.stats().calls, session.stats().rows) == (1, 3)


def test_by_name_the_answer_comes_by_name(make: Make, fake_host: Any) -> None:
    with make() as session:
        answer = session.infer({"image": Tensor(fake_host, images(2))})
        assert list(answer) == ["scores"] and answer["scores"][0] == "tensor of"


def test_another_librarys_array_is_read_there_and_answered_by_numpy(make: Make, fake_host: Any) -> None:
    with make() as session:
        batch: Any = Cupylike(fake_host, images(2))
        answer = session.infer({"image": batch})["scores"]
        assert np.array_equal(answer, fake_host.trt.expected(images(2)))
        assert TO_GPU not in fake_host.driver.calls


@pytest.mark.parametrize(
    ("content", "told"),
    [
        (images(2)[:, :2], r"'image': expected float32 \(N, 3, 8, 8\), got float32 \(2, 2, 8, 8\)"),
        (images(2).astype(np.float16), r"got float16 \(2, 3, 8, 8\)\. Convert it"),
        (images(9), r"'image': expected a batch of 1 to 8, got 9"),
    ],
)
def test_what_does_not_fit_is_refused_before_the_gpu_is_touched(
    make: Make, fake_host: Any, content: Floats, told: str
) -> None:
    with make() as session:
        with pytest.raises(InputError, match=told):
            session.infer(Tensor(fake_host, np.ascontiguousarray(content)))
        assert fake_host.driver.calls == []


@pytest.mark.parametrize("options", [{"nan": "refuse"}, {}])
def test_where_it_must_be_looked_into_or_lies_elsewhere_it_goes_by_the_host(
    make: Make, fake_host: Any, options: dict[str, Any]
) -> None:
    with make(**options) as session:
        batch = Tensor(fake_host, images(1), device=0 if options else 1)
        with pytest.raises(InputError, match="copied to the host"):
            session.infer(batch)
        assert "cpu" in batch.calls


def test_a_closed_session_says_so_to_tensors_too(make: Make, fake_host: Any) -> None:
    session = make()
    session.close()
    with pytest.raises(BackendError, match="is closed"):
        session.infer(Tensor(fake_host, images(1)))


def test_what_lies_on_the_sessions_gpu_is_told_from_the_rest(make: Make, fake_host: Any) -> None:
    here, there = Tensor(fake_host, images(1)), Tensor(fake_host, images(1), device=1)
    assert lie_on({"a": here}, "cuda:0") and lie_on({"a": here, "b": images(1)}, "cuda:0")
    assert not lie_on({"a": here}, "cpu") and not lie_on({"a": here}, "cuda:1")
    assert not lie_on({"a": here, "b": there}, "cuda:0") and not lie_on({"a": images(1)}, "cuda:0")
    assert not lie_on({"a": Cupylike(fake_host, images(1), strides=(4, 8, 12, 16))}, "cuda:0")
    assert not lie_on({"a": Tensor(fake_host, images(1), dtype="bfloat16")}, "cuda:0")
    with contextlib.suppress(ImportError):
        importlib.import_module("ml_dtypes")  # numpy then knows the name
    assert not lie_on({"a": Tensor(fake_host, images(1), dtype="bfloat16")}, "cuda:0")


def test_an_outline_has_a_shape_and_no_memory(fake_host: Any) -> None:
    told = outline(Cupylike(fake_host, images(4)))
    assert (told.shape, told.strides) == ((4, 3, 8, 8), (0, 0, 0, 0))
    assert told.dtype == np.float32
    assert np.shares_memory(outline(host := images(1)), host)
