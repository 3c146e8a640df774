"""A bundle's engine at work, on a fake GPU that does its work as late as a real one may.

Both APIs are recorded ones; a wait that is missing gives a wrong answer here. What only a GPU can show (that a plan is
accepted, that the numbers agree) is in test_gpu_parity.py.
"""

import gc
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from engineworks import runtime
from engineworks.runtime import BackendError, InputError, cuda, open_bundle, trt_contexts
from engineworks.runtime.backend import Speed, open_bundle_session
from engineworks.runtime.cuda import Device
from engineworks.runtime.manifest import EngineRecord
from engineworks.runtime.trt_session import TrtSession

APIS = {"rtx": ("tensorrt_rtx-1.7", "1.7.1.116"), "tensorrt": ("tensorrt-11.4", "11.4.0.106")}
Make = Callable[..., TrtSession]
Floats = npt.NDArray[np.float32]


def images(count: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).random((count, 3, 8, 8), np.float32)


@pytest.fixture
def opened(fake_host: Any, make_bundle: Callable[..., Path]) -> Iterator[Make]:
    """Open a bundle's engine on the fake host; at the end everything must have been given back."""
    sessions: list[TrtSession] = []

    def make(flavour: str = "rtx", api: str = "", plan: dict[str, Any] | None = None, **options: Any) -> TrtSession:
        fake_host.install(api or APIS[flavour][0], **(plan or {}))
        version = "10.16.1.11" if api == "tensorrt-10.16" else APIS[flavour][1]
        record = EngineRecord("engines/rtx.engine", flavour, version, ("sm89",), 3, {"convolution fp16": 1})
        bundle = open_bundle(make_bundle(engines=(record,)))
        session = open_bundle_session(bundle, backend=flavour, **options)  # type: ignore[arg-type]
        assert isinstance(session, TrtSession)
        sessions.append(session)
        return session

    yield make
    for session in sessions:
        session.close()
    assert fake_host.driver.faults == []
    assert fake_host.driver.broken or fake_host.driver.leaks() == {}
    assert {kind for kind, count in fake_host.plan.alive.items() if count} <= set()


def scores(session: TrtSession, batch: Floats) -> Any:
    return session.run({"image": batch}, ["scores"])[0]


@pytest.mark.parametrize("api", ["tensorrt_rtx-1.7", "tensorrt-11.4", "tensorrt-10.16"])
@pytest.mark.parametrize("graphs", [False, True])
def test_an_engine_answers_on_every_recorded_api(opened: Make, fake_host: Any, api: str, graphs: bool) -> None:
    flavour = "rtx" if "rtx" in api else "tensorrt"
    session = opened(flavour, api, speed=Speed(cuda_graphs=graphs))
    for count in (1, 4, 8, 8, 8, 3, 3, 1):
        batch = images(count, count)
        assert np.array_equal(scores(session, batch), fake_host.trt.expected(batch))
    assert (session.backend.name, session.device) == (flavour, "cuda:0")
    assert session.backend.why == "the bundle has an engine for this GPU, NVIDIA L4"


def test_outputs_are_the_callers_own(opened: Make, fake_host: Any) -> None:
    session = opened()
    first = scores(session, images(2))
    kept = first.copy()
    scores(session, images(8, 1))
    session.close()
    assert np.array_equal(first, kept) and first.flags.owndata


def test_a_small_batch_after_a_large_one_gets_no_row_of_it(opened: Make, fake_host: Any) -> None:
    session = opened(contexts=1)
    scores(session, images(8))
    small = scores(session, images(3, 5))
    assert small.shape == (3, 4) and np.array_equal(small, fake_host.trt.expected(images(3, 5)))


def test_an_input_that_is_not_contiguous_is_copied_once_and_right(opened: Make, fake_host: Any) -> None:
    wide = images(4).transpose(0, 1, 3, 2)
    assert not wide.flags.c_contiguous
    assert np.array_equal(scores(opened(), wide), fake_host.trt.expected(np.ascontiguousarray(wide)))


# --- profiles


PROFILES = {"profiles": ((1, 1, 1), (2, 4, 8), (1, 16, 32))}


@pytest.mark.parametrize(("count", "profile"), [(1, 0), (2, 1), (8, 1), (9, 2), (32, 2)])
def test_the_smallest_profile_that_fits_is_taken(opened: Make, fake_host: Any, count: int, profile: int) -> None:
    session = opened(plan=PROFILES)
    taken: list[int] = []
    for pool in session._pools.values():
        for slot in pool.slots:
            inner = slot.run
            slot.run = lambda *args, i=slot.profile.index, f=inner: taken.append(i) or f(*args)  # type: ignore
    batch = images(count)
    assert np.array_equal(scores(session, batch), fake_host.trt.expected(batch))
    assert taken == [profile]
    assert fake_host.plan.configured["allocation"] == "ON_PROFILE_CHANGE"


@pytest.mark.parametrize("count", [0, 3, 9])
def test_a_batch_that_no_profile_takes_is_refused_and_never_padded(opened: Make, fake_host: Any, count: int) -> None:
    session = opened(plan={"profiles": ((1, 1, 2), (4, 4, 8))})
    before = list(fake_host.plan.events)
    with pytest.raises(InputError, match=rf"expected a batch of 1 to 2, 4 to 8 \(the engine's profiles\), got {count}"):
        scores(session, images(count))
    assert fake_host.plan.events == before


def test_a_fixed_engine_takes_its_batch_alone(opened: Make, fake_host: Any) -> None:
    session = opened(plan={"profiles": ((2, 2, 2),)})
    assert np.array_equal(scores(session, images(2)), fake_host.trt.expected(images(2)))
    with pytest.raises(InputError, match="got 1"):
        scores(session, images(1))


def test_max_batch_makes_the_buffers_as_small(opened: Make, fake_host: Any) -> None:
    session = opened(contexts=1, max_batch=2)
    assert sorted(map(len, fake_host.driver.memory.values())) == [2 * 4 * 4, 2 * 3 * 8 * 8 * 4]
    with pytest.raises(InputError, match="expected a batch of 1 to 2"):
        scores(session, images(3))


def test_max_batch_below_the_engines_smallest_is_refused(opened: Make) -> None:
    with pytest.raises(BackendError, match="max_batch: the engine's smallest batch is 4, got 2"):
        opened(plan={"profiles": ((4, 4, 8),)}, max_batch=2)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, r"expected inputs \['image'\], got \[\]"),
        ({"image": images(1), "more": images(1)}, r"expected inputs \['image'\], got \['image', 'more'\]"),
        ({"image": images(1).astype(np.float64)}, r"'image': expected float32 \(1, 3, 8, 8\), got float64"),
        ({"image": images(1).astype(">f4")}, "got >f4"),
        ({"image": images(1)[:, :, :4]}, r"got float32 \(1, 3, 4, 8\)"),
        ({"image": np.float32(1)}, "expected an array with a batch axis, got float32"),
        ({"image": [[1.0]]}, "expected an array with a batch axis, got list"),
    ],
)
def test_inputs_that_are_not_the_engines_are_named(opened: Make, inputs: dict[str, Any], message: str) -> None:
    session = opened()
    with pytest.raises(InputError, match=message):
        session.run(inputs, ["scores"])
    assert scores(session, images(1)).shape == (1, 4)


# --- threads, pools, closing


@pytest.mark.slow
@pytest.mark.parametrize("flavour", ["tensorrt", "rtx"])
def test_32_threads_of_200_calls_give_bitwise_what_one_gives(opened: Make, fake_host: Any, flavour: str) -> None:
    session = opened(flavour, contexts=3)
    batches = [images(1 + number % 8, number) for number in range(16)]
    alone = [scores(session, batch) for batch in batches]

    def many(thread: int) -> int:
        order = np.random.default_rng(thread).integers(0, len(batches), 200)
        return sum(np.array_equal(scores(session, batches[index]), alone[index]) for index in order)

    with ThreadPoolExecutor(32) as threads:
        assert list(threads.map(many, range(32))) == [200] * 32


def stalled(session: TrtSession, monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Make every wait for the GPU last until the second event; the first says that a call is in flight."""
    entered, go = threading.Event(), threading.Event()
    real = Device.synchronise

    def slow(self: Device, stream: int) -> None:
        entered.set()
        assert go.wait(10)
        real(self, stream)

    monkeypatch.setattr(Device, "synchronise", slow)
    return entered, go


def test_callers_wait_while_every_context_is_lent(opened: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(contexts=2)
    _, go = stalled(session, monkeypatch)
    with ThreadPoolExecutor(5) as threads:
        calls = [threads.submit(scores, session, images(1, seed)) for seed in range(5)]
        for _ in range(100):
            time.sleep(0.002)
            if session._calls == 5:
                break
        (pool,) = session._pools.values()
        assert not pool._free and not any(call.done() for call in calls)
        go.set()
        assert all(call.result(timeout=10).shape == (1, 4) for call in calls)


def test_close_waits_for_the_calls_in_flight_and_refuses_later_ones(
    opened: Make, fake_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(contexts=1)
    entered, go = stalled(session, monkeypatch)
    with ThreadPoolExecutor(3) as threads:
        call = threads.submit(scores, session, images(2))
        assert entered.wait(10)
        waiting = threads.submit(scores, session, images(1))
        while session._calls < 2:
            time.sleep(0.001)
        closing = threads.submit(session.close)
        while not session._closed:
            time.sleep(0.001)
        with pytest.raises(BackendError, match=r"^rtx: this session is closed\. Open the bundle again"):
            scores(session, images(1))
        assert not closing.done() and fake_host.driver.memory
        go.set()
        assert np.array_equal(call.result(timeout=10), fake_host.trt.expected(images(2)))
        assert waiting.result(timeout=10).shape == (1, 4)
        closing.result(timeout=10)
    session.close()
    assert fake_host.driver.leaks() == {}


def test_a_session_that_nobody_closes_gives_everything_back_with_its_last_reference(
    fake_host: Any, make_bundle: Callable[..., Path]
) -> None:
    fake_host.install()
    record = EngineRecord("engines/rtx.engine", "rtx", "1.7.1.116", ("sm89",), 3, {})
    session = open_bundle_session(open_bundle(make_bundle(engines=(record,))), backend="rtx")
    session.run({"image": images(1)}, ["scores"])
    del session
    gc.collect()
    assert (fake_host.driver.leaks(), fake_host.driver.contexts) == ({}, 0)


def test_tensorrt_s_objects_end_in_the_order_in_which_it_wants_that(opened: Make, fake_host: Any) -> None:
    opened(contexts=2).close()
    ends = [event for event in fake_host.plan.events if event.startswith("del ")]
    assert ends == ["del context", "del context", "del engine", "del runtime"]


# --- what the API answers with None and False


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"fails": {"Runtime": True}}, r"tensorrt_rtx 1\.7\.1\.116 does not start: no library"),
        (
            {"fails": {"deserialize_cuda_engine": None}, "log": (("ERROR", "magicTag"),)},
            "bundle four-fp16: tensorrt_rtx refused the engine: magicTag",
        ),
        ({"fails": {"deserialize_cuda_engine": None}}, "refused the engine: no reason was logged"),
        ({"fails": {"create_runtime_config": None}}, "gave no runtime configuration: no reason was logged"),
        ({"fails": {"create_execution_context": None}}, "gave no execution context: no memory for a context"),
        ({"fails": {"set_optimization_profile_async": False}}, "refused the optimization profile 0: no such profile"),
        ({"validity": ("INVALID", 2)}, r"cannot run the engine here: it was not compiled for this GPU\.$"),
        ({"validity": ("INVALID", 32)}, r"cannot run the engine here: the file is no whole engine\. Re-run"),
        ({"validity": ("INVALID", 5)}, "another TensorRT-RTX version; the NVIDIA driver is too old"),
        ({"dtype": "HALF"}, r"the engine is not of this bundle: image: expected \('input', 'float32'.*'float16'"),
        ({"dtype": "BF16"}, "BF16"),
        ({"row": (3, 9, 8)}, r"not of this bundle: image: .*\(-1, 3, 9, 8\)"),
        ({"location": "HOST"}, "host float32"),
    ],
)
def test_every_refusal_on_opening_is_an_error_with_its_cause(
    opened: Make, fake_host: Any, plan: dict[str, Any], message: str
) -> None:
    with pytest.raises(BackendError, match=message) as caught:
        opened(plan=plan)
    assert "\n" not in str(caught.value)
    assert fake_host.driver.leaks() == {}


@pytest.mark.parametrize("validity", [("INVALID", 0), ("VALID", 0), ("SUBOPTIMAL", 0), ("SUBOPTIMAL", 1)])
def test_a_verdict_without_a_reason_is_left_to_deserialising(opened: Make, validity: tuple[str, int]) -> None:
    session = opened(plan={"validity": validity})
    assert scores(session, images(1)).shape == (1, 4)
    assert bool(session.notes) == (validity[0] == "SUBOPTIMAL")


@pytest.mark.parametrize(
    ("fails", "message"),
    [
        ({"set_input_shape": False}, r"refused the shape \(2, 3, 8, 8\) of input 'image': shape out of range"),
        ({"infer_shapes": ["image"]}, "refused the shapes; it still wants image: no reason was logged"),
        ({"get_tensor_shape": 3}, r"shape of output 'scores': expected \(2, 4\), it makes \(3, 4\)"),
        ({"set_tensor_address": False}, "refused the address of 'image': null address"),
    ],
)
def test_a_false_before_the_gpu_works_costs_that_call_alone(
    opened: Make, fake_host: Any, fails: dict[str, Any], message: str
) -> None:
    session = opened()
    fake_host.plan.fails.update(fails)
    with pytest.raises(BackendError, match=message):
        scores(session, images(2))
    fake_host.plan.fails.clear()
    assert np.array_equal(scores(session, images(2)), fake_host.trt.expected(images(2)))


# --- a lost GPU


def test_an_execution_that_fails_ends_the_session(opened: Make, fake_host: Any) -> None:
    session = opened()
    fake_host.plan.fails["execute_async_v3"] = False
    with pytest.raises(BackendError, match=r"^rtx on cuda:0 failed: execution failed: \[myelin\] launch failed"):
        scores(session, images(1))
    fake_host.plan.fails.clear()
    for _ in range(2):
        with pytest.raises(
            BackendError, match=r"is lost since an error of CUDA: .*launch failed\. Start a new process"
        ):
            scores(session, images(1))


CALLS = ["cuMemcpyHtoDAsync_v2", "cuMemcpyDtoHAsync_v2", "cuStreamSynchronize", "cuCtxPushCurrent_v2"]


@pytest.mark.parametrize("function", CALLS)
def test_a_lost_gpu_is_an_exception_each_time_and_never_an_answer(opened: Make, fake_host: Any, function: str) -> None:
    session = opened()
    scores(session, images(1))
    fake_host.driver.fails[function] = fake_host.cuda.ILLEGAL_ADDRESS
    with pytest.raises(BackendError, match=rf"{function}: an illegal memory access was encountered \(CUDA error 700\)"):
        scores(session, images(1))
    for _ in range(3):
        with pytest.raises(BackendError, match=r"rtx on cuda:0 is lost since an error of CUDA"):
            scores(session, images(1))
    session.close()
    session.close()


def test_a_lost_gpu_under_32_threads_is_an_exception_for_each(opened: Make, fake_host: Any) -> None:
    session = opened(contexts=2)
    right = fake_host.trt.expected(images(2))

    def call(number: int) -> str:
        if number == 100:
            fake_host.driver.broken = fake_host.cuda.ILLEGAL_ADDRESS
        try:
            return "right" if np.array_equal(scores(session, images(2)), right) else "WRONG"
        except BackendError:
            return "refused"

    with ThreadPoolExecutor(32) as threads:
        answers = list(threads.map(call, range(400)))
    assert set(answers) == {"right", "refused"}
    assert answers[-50:] == ["refused"] * 50


def test_those_who_wait_when_the_gpu_is_lost_are_told(
    opened: Make, fake_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(contexts=1)
    entered, go = stalled(session, monkeypatch)
    with ThreadPoolExecutor(4) as threads:
        calls = [threads.submit(scores, session, images(1)) for _ in range(4)]
        assert entered.wait(10)
        while session._calls < 4:
            time.sleep(0.001)
        fake_host.driver.broken = fake_host.cuda.ILLEGAL_ADDRESS
        go.set()
        assert all(isinstance(call.exception(timeout=10), BackendError) for call in calls)


def test_want_of_memory_costs_one_call(opened: Make, fake_host: Any) -> None:
    session = opened()
    fake_host.driver.fails["cuMemAllocHost_v2"] = fake_host.cuda.OUT_OF_MEMORY
    with pytest.raises(BackendError, match=r"cuMemAllocHost_v2: out of memory \(CUDA error 2\)"):
        scores(session, images(1))
    assert scores(session, images(1)).shape == (1, 4)


def test_a_gpu_without_memory_for_the_buffers_is_told_and_leaves_nothing(opened: Make, fake_host: Any) -> None:
    fake_host.driver.fails["cuMemAlloc_v2"] = fake_host.cuda.OUT_OF_MEMORY
    with pytest.raises(BackendError, match="out of memory"):
        opened()
    assert fake_host.driver.leaks() == {}


def test_a_call_that_is_interrupted_leaves_no_work_behind(
    opened: Make, fake_host: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = opened(contexts=1)
    real = Device.to_host

    def interrupted(self: Device, *arguments: int) -> None:
        real(self, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Device, "to_host", interrupted)
        with pytest.raises(KeyboardInterrupt):
            scores(session, images(8))
    assert not any(fake_host.driver.streams.values())
    assert np.array_equal(scores(session, images(3)), fake_host.trt.expected(images(3)))


# --- planted bugs: the tests above would see them


def forget(fake_host: Any) -> None:
    """Take the planted bug's traces away, so that the rest of the test can be held to what always holds."""
    fake_host.driver.faults.clear()
    for work in fake_host.driver.streams.values():
        work.clear()


def test_a_missing_wait_at_the_end_is_seen(opened: Make, fake_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened()
    with monkeypatch.context() as patched:
        patched.setattr(Device, "synchronise", lambda self, stream: None)
        wrong = scores(session, images(2))
    assert not np.array_equal(wrong, fake_host.trt.expected(images(2)))
    assert np.array_equal(scores(session, images(2)), fake_host.trt.expected(images(2)))


def test_a_context_lent_twice_is_seen(opened: Make, fake_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    session = opened(contexts=1)
    (pool,) = session._pools.values()
    (slot,) = pool.slots
    with monkeypatch.context() as patched:
        patched.setattr(Device, "synchronise", lambda self, stream: None)
        scores(session, images(1))
        with slot.gpu.current():
            first, slot.stream = slot.stream, slot.gpu.make_stream()
        scores(session, images(1))
    with slot.gpu.current(), pytest.raises(AssertionError, match="at work on two streams"):
        slot.gpu.synchronise(slot.stream)
    forget(fake_host)
    with slot.gpu.current():
        slot.gpu.destroy_stream(first)


def test_a_buffer_freed_too_early_is_seen(opened: Make, fake_host: Any) -> None:
    session = opened(contexts=1)
    (pool,) = session._pools.values()
    (slot,) = pool.slots
    buffer = slot._outputs["scores"]
    with slot.gpu.current():
        slot.gpu.free(buffer.address)
        with pytest.raises(AssertionError, match="use after free"):
            slot.run({"image": images(1)}, ["scores"], 1)
        buffer.address = slot.gpu.allocate(buffer.size)
    forget(fake_host)


def test_buffers_for_too_few_rows_are_seen(opened: Make, fake_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    real = trt_contexts.Slot.prepare
    monkeypatch.setattr(trt_contexts.Slot, "prepare", lambda self, i, o, rows: real(self, i, o, rows - 1))
    session = opened(contexts=1)
    with pytest.raises((AssertionError, ValueError)):
        scores(session, images(8))
    forget(fake_host)


# --- versions, targets, absence


def fitted(make_bundle: Callable[..., Path], *records: EngineRecord) -> runtime.Bundle:
    return open_bundle(make_bundle(engines=records))


def record(flavour: str = "rtx", version: str = "1.7.1.116", targets: tuple[str, ...] = ("sm89",)) -> EngineRecord:
    return EngineRecord("engines/rtx.engine", flavour, version, targets, 3, {})


def test_an_engine_of_another_version_is_refused_before_it_is_opened(
    fake_host: Any, make_bundle: Callable[..., Path]
) -> None:
    fake_host.install()
    with pytest.raises(BackendError) as caught:
        open_bundle_session(fitted(make_bundle, record(version="1.6.0.1")), backend="rtx")
    assert str(caught.value) == (
        "rtx: bundle four-fp16: engine was built by tensorrt_rtx 1.6.0.1; installed is 1.7.1.116. "
        'Install that version, re-run export-model here, or open it with backend="onnxruntime".'
    )
    assert fake_host.plan.events == []


def test_an_engine_for_another_gpu_is_refused_with_the_mend(fake_host: Any, make_bundle: Callable[..., Path]) -> None:
    fake_host.install("tensorrt-11.4")
    with pytest.raises(BackendError) as caught:
        open_bundle_session(fitted(make_bundle, record("tensorrt", "11.4", ("sm_90",))), backend="tensorrt")
    assert str(caught.value) == (
        "tensorrt: bundle four-fp16: engine was built by tensorrt 11.4 for sm_90; this GPU is sm_89. "
        'Re-run export-model here, or open it with backend="onnxruntime".'
    )


def test_without_a_driver_nothing_of_tensorrt_is_touched(
    fake_host: Any, make_bundle: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Poisoned:
        def __getattr__(self, name: str) -> Any:
            raise SystemError(f"touched {name} without a driver: the real one would end the process")

    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.setitem(sys.modules, name, Poisoned())
    monkeypatch.setattr(cuda, "LIBRARY", "libcuda.so.absent")
    bundle = fitted(make_bundle, record(), record("tensorrt", "11.4.0.106"))
    session = open_bundle_session(bundle)
    absent = "no NVIDIA driver (libcuda.so.absent is not found)"
    assert session.backend.name == "onnxruntime-cpu"
    assert session.backend.passed_over == (f"tensorrt: {absent}", f"rtx: {absent}", f"cuda: {absent}")
    for name in ("tensorrt", "rtx"):
        with pytest.raises(BackendError, match=rf"^{name}: no NVIDIA driver"):
            open_bundle_session(bundle, backend=name)  # type: ignore[arg-type]
