"""Arrays that lie on the GPU, CUDA graphs, and the order of streams, on a fake GPU that works as late as it may."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engineworks.runtime import BackendError, InputError, open_bundle
from engineworks.runtime.backend import Speed, open_bundle_session
from engineworks.runtime.cuda import Device
from engineworks.runtime.manifest import EngineRecord, Tensor
from engineworks.runtime.trt_contexts import shaped
from engineworks.runtime.trt_session import TrtSession

Floats = npt.NDArray[np.float32]
CALLERS_STREAM = 2  # the fake knows the per-thread default stream by its number in cuda.h


def images(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((count, 3, 8, 8), np.float32)


class Tensorlike:
    """Another library's array on the GPU: its content is written by work that its own stream has yet to do."""

    def __init__(self, host: Any, content: Floats, stream: int = CALLERS_STREAM, device: int = 0) -> None:
        address = self.address = host.driver.new(bytes([0xCD]) * content.nbytes, device)
        self.shape, self.strides, self._stream = content.shape, None, stream
        host.driver.queue(stream, lambda: host.driver.write(address, content.tobytes()))

    @property
    def __cuda_array_interface__(self) -> dict[str, Any]:
        data = (self.address, False)
        return {"shape": self.shape, "typestr": "<f4", "data": data, "version": 3, "strides": self.strides,
                "stream": self._stream}  # fmt: skip


@pytest.fixture
def make(fake_host: Any, make_bundle: Callable[..., Path]) -> Callable[..., TrtSession]:
    """Open a bundle's engine: on RTX, or on TensorRT 11 where a test captures graphs by itself."""

    def opened(flavour: str = "rtx", graphs: bool = False, contexts: int = 1, **plan: Any) -> TrtSession:
        fake_host.install("tensorrt_rtx-1.7" if flavour == "rtx" else "tensorrt-11.4", **plan)
        version = "1.7.1.116" if flavour == "rtx" else "11.4.0.106"
        record = EngineRecord("engines/rtx.engine", flavour, version, ("sm89",), 3, {})
        bundle = open_bundle(make_bundle(engines=(record,)))
        session = open_bundle_session(bundle, contexts=contexts, speed=Speed(cuda_graphs=graphs))
        assert isinstance(session, TrtSession)
        return session

    return opened


Open = Callable[..., TrtSession]


def scores(session: TrtSession, batch: Any) -> Any:
    return session.run({"image": batch}, ["scores"])[0]


def test_an_array_on_the_gpu_is_read_where_it_lies_once_its_stream_has_written_it(make: Open, fake_host: Any) -> None:
    session = make()
    batch = Tensorlike(fake_host, images(3))
    assert np.array_equal(scores(session, batch), fake_host.trt.expected(images(3)))
    assert fake_host.plan.addresses[-1]["image"] == batch.address
    assert "cuMemcpyHtoDAsync_v2" not in fake_host.driver.calls
    assert "cuMemcpyDtoDAsync_v2" not in fake_host.driver.calls


def test_a_wait_for_the_callers_stream_that_is_missing_is_seen(
    make: Open, fake_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = make()
    monkeypatch.setattr(Device, "wait_for", lambda self, stream, other: None)
    wrong = scores(session, Tensorlike(fake_host, images(3)))
    assert not np.array_equal(wrong, fake_host.trt.expected(images(3)))


def test_the_host_does_not_wait_for_the_callers_stream(make: Open, fake_host: Any) -> None:
    session = make()
    fake_host.driver.calls.clear()
    scores(session, Tensorlike(fake_host, images(3)))
    assert fake_host.driver.calls.count("cuStreamSynchronize") == 1
    assert fake_host.driver.calls.count("cuStreamWaitEvent") == 1


def test_host_arrays_and_arrays_on_the_gpu_take_turns(make: Open, fake_host: Any) -> None:
    session = make()
    for seed in range(4):
        batch = images(2, seed)
        assert np.array_equal(scores(session, Tensorlike(fake_host, batch)), fake_host.trt.expected(batch))
        assert np.array_equal(scores(session, batch), fake_host.trt.expected(batch))


def test_an_array_that_is_not_aligned_is_copied_on_the_gpu(make: Open, fake_host: Any) -> None:
    session = make()
    wide = Tensorlike(fake_host, np.concatenate([images(1).reshape(-1)[:1], images(2, 1).reshape(-1)]))
    wide.address, wide.shape = wide.address + 4, (2, 3, 8, 8)
    assert np.array_equal(scores(session, wide), fake_host.trt.expected(images(2, 1)))
    assert fake_host.driver.calls.count("cuMemcpyDtoDAsync_v2") == 1


def test_an_array_on_another_gpu_is_refused(make: Open, fake_host: Any) -> None:
    fake_host.driver.gpus.append(("NVIDIA L4", 8, 9))
    session = make()
    with pytest.raises(InputError, match=r"'image': it lies on another GPU than cuda:0\. Copy it there first"):
        scores(session, Tensorlike(fake_host, images(1), device=1))


def test_an_array_on_the_gpu_that_is_not_contiguous_is_refused(make: Open, fake_host: Any) -> None:
    session = make()
    batch = Tensorlike(fake_host, images(2))
    batch.strides = (768, 4, 96, 12)  # type: ignore[assignment]
    with pytest.raises(InputError, match="'image': expected a contiguous array"):
        scores(session, batch)


def test_outputs_stay_on_the_gpu_where_they_are_asked_for(make: Open, fake_host: Any) -> None:
    session = make()
    (first,) = session.run_on_device({"image": images(2)}, ["scores"])
    (second,) = session.run_on_device({"image": images(2, 1)}, ["scores"])
    assert np.array_equal(first.numpy(), fake_host.trt.expected(images(2)))  # type: ignore[attr-defined]
    assert np.array_equal(second.numpy(), fake_host.trt.expected(images(2, 1)))  # type: ignore[attr-defined]
    assert first.__dlpack_device__() == (2, 0)
    assert "cuMemcpyDtoDAsync_v2" not in fake_host.driver.calls


def test_an_output_outlives_its_session_and_frees_itself(make: Open, fake_host: Any) -> None:
    session = make()
    (kept,) = session.run_on_device({"image": images(2)}, ["scores"])
    session.close()
    assert fake_host.driver.leaks() == {"device memory": 1}
    assert np.array_equal(kept.numpy(), fake_host.trt.expected(images(2)))  # type: ignore[attr-defined]
    del kept
    assert fake_host.driver.leaks() == {}


def test_outputs_on_the_gpu_can_be_inputs_again(make: Open, fake_host: Any) -> None:
    session = make()
    (output,) = session.run_on_device({"image": images(2)}, ["scores"])
    with pytest.raises(InputError, match=r"'image': expected float32 \(2, 3, 8, 8\), got float32 \(2, 4\)"):
        scores(session, output)


# --- CUDA graphs


def test_rtx_captures_by_itself_and_reads_from_where_it_always_did(make: Open, fake_host: Any) -> None:
    session = make("rtx", graphs=True)
    assert fake_host.plan.configured["cuda_graph_strategy"] == "WHOLE_GRAPH_CAPTURE"
    for seed in range(3):
        batch = images(2, seed)
        assert np.array_equal(scores(session, Tensorlike(fake_host, batch)), fake_host.trt.expected(batch))
    assert len({tuple(at.items()) for at in fake_host.plan.addresses}) == 1
    assert "cuStreamBeginCapture_v2" not in fake_host.driver.calls


def test_without_that_a_batch_size_is_captured_once_and_replayed(make: Open, fake_host: Any) -> None:
    session = make("tensorrt", graphs=True)
    for seed in range(5):
        batch = images(2, seed)
        assert np.array_equal(scores(session, batch), fake_host.trt.expected(batch))
    assert fake_host.driver.calls.count("cuStreamBeginCapture_v2") == 1
    assert fake_host.driver.calls.count("cuGraphLaunch") == 3
    (output,) = session.run_on_device({"image": Tensorlike(fake_host, images(2, 7))}, ["scores"])
    assert np.array_equal(output.numpy(), fake_host.trt.expected(images(2, 7)))  # type: ignore[attr-defined]
    del output
    session.close()
    assert fake_host.driver.leaks().get("graphs") is None


def test_batch_sizes_that_alternate_are_not_captured(make: Open, fake_host: Any) -> None:
    session = make("tensorrt", graphs=True)
    for count in (2, 3, 2, 3):
        assert np.array_equal(scores(session, images(count)), fake_host.trt.expected(images(count)))
    assert "cuStreamBeginCapture_v2" not in fake_host.driver.calls


def test_another_batch_size_is_captured_anew(make: Open, fake_host: Any) -> None:
    session = make("tensorrt", graphs=True)
    for count in (2, 2, 3, 3, 2, 2):
        batch = images(count, count)
        assert np.array_equal(scores(session, batch), fake_host.trt.expected(batch))
    assert fake_host.driver.calls.count("cuStreamBeginCapture_v2") == 3
    session.close()
    assert fake_host.driver.leaks() == {}


@pytest.mark.parametrize("how", ["context", "driver"])
def test_an_engine_that_cannot_be_captured_says_so_and_runs_as_before(make: Open, fake_host: Any, how: str) -> None:
    session = make("tensorrt", graphs=True, capturable=how != "context")
    if how == "driver":
        fake_host.driver.fails["cuStreamEndCapture"] = fake_host.cuda.CAPTURE_UNSUPPORTED
    for seed in range(3):
        assert np.array_equal(scores(session, images(2, seed)), fake_host.trt.expected(images(2, seed)))
    (note,) = session.notes
    assert note.startswith("CUDA graphs are off: ")
    assert fake_host.driver.calls.count("cuStreamBeginCapture_v2") == 1


def test_a_context_that_is_not_capturable_yet_is_asked_again(make: Open, fake_host: Any) -> None:
    session = make("rtx", graphs=True, takes_strategy=False, fails={"is_stream_capturable": False})
    scores(session, images(2))
    scores(session, images(2))
    assert "cuStreamBeginCapture_v2" not in fake_host.driver.calls
    fake_host.plan.fails.clear()
    scores(session, images(2))
    assert fake_host.driver.calls.count("cuStreamBeginCapture_v2") == 1
    assert session.notes == ()


def test_graphs_are_off_unless_asked_for(make: Open, fake_host: Any) -> None:
    make("rtx")
    assert "cuda_graph_strategy" not in fake_host.plan.configured


@pytest.mark.parametrize("shape", [(), ("batch", "width"), (4, "width")])
def test_a_tensor_with_another_free_axis_is_refused(shape: tuple[int | str, ...]) -> None:
    with pytest.raises(BackendError, match="expected a batch and fixed sizes behind it"):
        shaped(Tensor("x", "float32", shape))
