"""An engine of TensorRT itself asked what it holds, on recorded APIs and a fake GPU; no real one has been asked yet."""

from collections.abc import Callable
from typing import Any

import pytest

from engineworks.runtime import cuda
from engineworks.runtime.errors import PlanError
from engineworks.runtime.plan import Plan
from engineworks.runtime.trt_inspector import read_engine
from tests.written_information import free

VERSIONS = {"tensorrt-11.4": "11.4.0.106", "tensorrt-10.16": "10.16.1.11"}
Read = Callable[..., Plan]


@pytest.fixture
def read(fake_host: Any) -> Read:
    """Read an engine on the fake host, an L4; everything must have been given back."""

    def make(api: str = "tensorrt-11.4", batch: int = 4, version: str = "", target: str = "sm89", **plan: Any) -> Plan:
        fake_host.install(api, **{"information": free, **plan})
        try:
            return read_engine(b"plan", version=version or VERSIONS[api], targets=(target,), batch=batch)
        finally:
            assert fake_host.driver.faults == [] and fake_host.driver.leaks() == {}
            assert not any(fake_host.plan.alive.values())

    return make


@pytest.mark.parametrize("api", VERSIONS)
@pytest.mark.parametrize("batch", [1, 4, 8])
def test_an_engine_with_a_free_batch_is_read_for_the_batch_asked_for(read: Read, api: str, batch: int) -> None:
    found = read(api, batch)
    assert (found.batch, found.version, found.targets) == (batch, VERSIONS[api], ("sm89",))
    assert [product.multiply_adds for kernel in found.kernels for product in kernel.products] == [
        batch * 64 * 432,
        batch * 160,
    ]


def test_nothing_is_run_and_objects_go_as_tensorrt_wants_it(read: Read, fake_host: Any) -> None:
    read()
    assert "execute_async_v3" not in fake_host.plan.events
    gone = [event for event in fake_host.plan.events if event.startswith("del")]
    assert gone == ["del inspector", "del context", "del engine", "del runtime"]


def test_the_profile_that_takes_the_batch_is_chosen(read: Read) -> None:
    profiles = ((1, 1, 1), (2, 4, 8))
    assert read(batch=8, profiles=profiles).batch == 8
    with pytest.raises(PlanError, match="no profile of the engine takes a batch of 9"):
        read(batch=9, profiles=profiles)


def test_an_engine_of_a_fixed_batch_is_read_for_that_one(read: Read) -> None:
    assert read(profiles=((4, 4, 4),)).batch == 4
    with pytest.raises(PlanError, match="no profile of the engine takes a batch of 2"):
        read(batch=2, profiles=((4, 4, 4),))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"target": "sm90"}, "not readable here: the engine is for sm90, and this GPU is sm89"),
        ({"version": "11.3.0.1"}, "not readable here: built by tensorrt 11.3.0.1, and installed is 11.4.0.106"),
        ({"fails": {"Runtime": True}}, "not readable here: tensorrt 11.4.0.106 does not start: no library"),
        (
            {"fails": {"deserialize_cuda_engine": None}, "log": (("ERROR", "magicTag"),)},
            "not readable here: the engine: tensorrt refused the engine: magicTag",
        ),
        ({"fails": {"create_execution_context": None}}, "gave no context or inspector: no memory for a context"),
        ({"fails": {"create_engine_inspector": None}}, "gave no context or inspector: no reason was logged"),
        ({"fails": {"set_optimization_profile_async": 1}}, "did not take a batch of 4: no such profile"),
        ({"fails": {"set_input_shape": 1}}, "did not take a batch of 4: shape out of range"),
        ({"row": (3, -1, 8)}, "more than the batch is free in the engine's inputs"),
        ({"information": lambda batch: free(None)}, "not readable: a size of tensor 'x' is not told"),
        ({"information": lambda batch: '{"Layers": ["conv"]}'}, "its layers' names alone"),
    ],
)
def test_what_cannot_be_read_is_told_and_nothing_is_left_behind(
    read: Read, given: dict[str, Any], message: str
) -> None:
    with pytest.raises(PlanError, match=message):
        read(**given)


def test_an_error_of_cuda_is_told(read: Read, fake_host: Any) -> None:
    fake_host.install("tensorrt-11.4", information=free)
    fake_host.driver.fails["cuStreamCreate"] = fake_host.cuda.OUT_OF_MEMORY
    with pytest.raises(PlanError, match="not readable here: cuStreamCreate"):
        read_engine(b"plan", version="11.4.0.106", targets=("sm_89",), batch=4)


def test_a_missing_package_is_told_with_the_line_that_mends_it(fake_host: Any) -> None:
    with pytest.raises(PlanError, match=r'not readable here: tensorrt is not installed. pip install "engineworks\['):
        read_engine(b"plan", version="11.4.0.106", targets=("sm89",), batch=4)


def test_without_a_gpu_nothing_of_tensorrt_is_touched(fake_host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake_host.install("tensorrt-11.4", information=free)
    monkeypatch.setattr(cuda, "probe_gpu", lambda: cuda.Gpu(None, "no NVIDIA driver"))
    with pytest.raises(PlanError, match="TensorRT reads its own engines, on a GPU alone, and no NVIDIA driver"):
        read_engine(b"plan", version="11.4.0.106", targets=("sm89",), batch=4)
    assert fake_host.plan.events == []
