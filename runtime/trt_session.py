"""A bundle's engine at work, on TensorRT or TensorRT-RTX: threads come in, contexts are lent, answers go out.

After an error of CUDA nothing that the GPU says can be trusted, so the session is dead: every later call is refused,
and says why.
"""

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from engineworks.runtime import cuda
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.errors import BackendError, CudaError, InputError
from engineworks.runtime.manifest import EngineRecord
from engineworks.runtime.protocol import Array, Backend, OnDevice, Tuning
from engineworks.runtime.trt_cache import RuntimeCache, cache_paths
from engineworks.runtime.trt_contexts import Graphs, Lost, Pool, Shaped, Slot, shaped
from engineworks.runtime.trt_journal import Journal, listening
from engineworks.runtime.trt_runtime import OpenEngine, Profile, check_version, load_module, open_engine

T = TypeVar("T")


class TrtSession:
    """One engine with its contexts. ``run`` may be called from any number of threads."""

    def __init__(self, held: "_Held", backend: Backend) -> None:
        self.backend = backend
        self.device = f"cuda:{held.gpu.index}"
        self._held = held
        self._pools = held.pools
        self._dead = ""
        self._closed = False
        self._calls = 0
        self._idle = threading.Condition()
        self._release = weakref.finalize(self, held.free)

    @property
    def notes(self) -> tuple[str, ...]:
        """What is less than asked for, in words: a runtime cache that could not be kept, a graph not captured."""
        return self._held.notes()

    def run(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[Array]:
        """Run once and return the outputs on the host.

        Args:
            inputs: name → ``(N, …)`` on the host or on this GPU; all of one N.
            outputs: the names wanted.

        Raises:
            InputError: a shape or dtype that is not the engine's, or a batch that no profile takes: nothing is padded.
            BackendError: TensorRT or the GPU failed, or had failed before; or the session is closed.
        """
        return self._call(inputs, lambda slot, batch: slot.run(inputs, outputs, batch))

    def run_on_device(self, inputs: Mapping[str, Any], outputs: Sequence[str]) -> list[OnDevice]:
        """Run once and leave the outputs on the GPU; otherwise as ``run``."""
        return self._call(inputs, lambda slot, batch: slot.run_on_device(inputs, outputs, batch))

    def close(self) -> None:
        """Wait for the calls in flight, keep the runtime cache, and free everything; again does nothing."""
        with self._idle:
            self._closed = True
            while self._calls:
                self._idle.wait()
        self._release()

    def _call(self, inputs: Mapping[str, Any], work: "Callable[[Slot, int], list[T]]") -> list[T]:
        with self._entered():
            batch, pool = self._pool_for(inputs)
            with pool.lend(self._refuse_if_dead) as slot, self._guarded(), slot.gpu.current():
                answer = work(slot, batch)
                self._held.ran(slot.profile.index, batch)
                return answer

    @contextmanager
    def _entered(self) -> Iterator[None]:
        with self._idle:
            if self._closed:
                raise BackendError(f"{self.backend.name}: this session is closed. Open the bundle again.")
            self._refuse_if_dead()
            self._calls += 1
        try:
            yield
        finally:
            with self._idle:
                self._calls -= 1
                self._idle.notify_all()

    def _refuse_if_dead(self) -> None:
        if self._dead:
            raise BackendError(
                f"{self.backend.name} on {self.device} is lost since an error of CUDA: {self._dead}. "
                "Start a new process: this one's GPU state is gone."
            )

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """After an error of CUDA, refuse every later call, those that wait included."""
        try:
            yield
        except (CudaError, Lost) as error:
            if isinstance(error, Lost) or not error.is_passing:
                self._dead = self._dead or str(error)
                self._held.lost = True
                for pool in self._pools.values():
                    pool.wake()
            raise BackendError(f"{self.backend.name} on {self.device} failed: {error}") from error

    def _pool_for(self, inputs: Mapping[str, Any]) -> tuple[int, Pool]:
        """Find the smallest profile that takes the batch."""
        sizes = {name: _rows(name, value) for name, value in inputs.items()}
        wanted = {tensor.name for tensor in self._held.inputs}
        if sizes.keys() != wanted:
            raise InputError(f"expected inputs {sorted(wanted)}, got {sorted(sizes)}.")
        if len(set(sizes.values())) > 1:
            raise InputError(f"expected one batch size for all inputs, got {sizes}.")
        batch = next(iter(sizes.values()))
        for profile, pool in self._pools.items():  # from the smallest to the largest
            if profile.smallest <= batch <= profile.largest:
                return batch, pool
        ranges = ", ".join(f"{profile.smallest} to {profile.largest}" for profile in self._pools)
        raise InputError(
            f"expected a batch of {ranges} (the engine's profiles), got {batch}. Split it, or repeat rows."
        )


class _Held:
    """What must be freed, apart from the session: so that it is freed also when nobody closes that."""

    def __init__(self, opened: OpenEngine, gpu: cuda.Device, cache: RuntimeCache) -> None:
        self.opened, self.gpu, self.cache = opened, gpu, cache
        self.inputs: tuple[Shaped, ...] = ()
        self.pools: dict[Profile, Pool] = {}
        self.runtime_config: Any = None
        self.lost = False
        self._seen: set[tuple[int, int]] = set()
        self._lock = threading.Lock()

    def ran(self, profile: int, batch: int) -> None:
        """Keep the runtime cache when a batch size was new: its kernels were compiled just now."""
        if (profile, batch) in self._seen:
            return
        with self._lock:
            self._seen.add((profile, batch))
            self.cache.save()

    def notes(self) -> tuple[str, ...]:
        """Everything noted so far, without repeats."""
        noted = [note for slot in self.slots() for note in slot.notes]
        return tuple(dict.fromkeys((*self.opened.notes, *self.cache.notes, *noted)))

    def slots(self) -> list[Slot]:
        """Every context of every profile."""
        return [slot for pool in self.pools.values() for slot in pool.slots]

    def free(self) -> None:
        """Free everything; a lost GPU takes nothing back and has nothing left, so its errors say nothing new."""
        try:
            with self.gpu.current(), listening(Journal()):
                self._free()
        except CudaError:
            self._drop()
            if not self.lost:
                raise

    def _free(self) -> None:
        if not self.lost:
            self.cache.save()
        for slot in self.slots():
            slot.close()
        self._drop()

    def _drop(self) -> None:
        """Let go of TensorRT's objects in the order in which it wants that."""
        for slot in self.slots():
            slot.context = None
        self.runtime_config = None
        self.cache.close()
        self.opened.engine = None
        self.opened.runtime = None


def open_session(
    bundle: Bundle, plan: bytes, record: EngineRecord, gpu: cuda.Gpu, tuning: Tuning, passed_over: tuple[str, ...] = ()
) -> TrtSession:
    """Open an engine of the bundle on a GPU that the driver has shown.

    Args:
        bundle: for the engine's inputs and outputs, and the place of the runtime cache.
        plan: the engine's bytes, their digest already checked.
        record: the engine's record.
        gpu: the probe's answer.
        tuning: contexts, buffers, CUDA graphs, specialisation.
        passed_over: what was tried before, for the session's ``backend``.

    Raises:
        BackendError: the package is absent or of another version, or it or the GPU refused.
    """
    trt = load_module("rtx" if record.flavour == "rtx" else "tensorrt")
    check_version(trt, record, bundle.manifest.name)
    device = cuda.Device(cuda.open_driver(), gpu.index)
    journal = Journal()
    cache = RuntimeCache(cache_paths(bundle, record, gpu.target or "") if record.flavour == "rtx" else ())
    with device.current(), listening(journal):
        held = _Held(open_engine(trt, plan, bundle.manifest, journal), device, cache)
        try:
            _fill(held, bundle, tuning)
        except BaseException as error:
            held.free()
            if isinstance(error, RuntimeError):  # what the bindings raise, where they raise
                raise BackendError(f"bundle {bundle.manifest.name}: {trt.__name__}: {error}") from error
            raise
        cache.save()
    why = f"the bundle has an engine for this GPU, {gpu.name or gpu.target}"
    return TrtSession(held, Backend(record.flavour, why, passed_over))


def _fill(held: _Held, bundle: Bundle, tuning: Tuning) -> None:
    """Make every profile's contexts now: what cannot run here is known before the first call."""
    inputs = [shaped(tensor) for tensor in bundle.manifest.inputs]
    outputs = [shaped(tensor) for tensor in bundle.manifest.outputs]
    held.inputs = tuple(inputs)
    graphs = _configure(held, tuning)
    for profile in held.opened.profiles:
        rows = min(profile.largest, tuning.max_batch or profile.largest)
        if rows < profile.smallest:
            continue
        limited, slots = Profile(profile.index, profile.smallest, rows), list[Slot]()
        for _ in range(tuning.contexts):
            slots.append(Slot(_new_context(held), held.gpu, profile, graphs))
            held.pools[limited] = Pool(slots)  # known from here on, so that it is freed whatever happens
            slots[-1].prepare(inputs, outputs, rows)
    if not held.pools:
        least = min(profile.smallest for profile in held.opened.profiles)
        raise BackendError(f"max_batch: the engine's smallest batch is {least}, got {tuning.max_batch}.")


def _configure(held: _Held, tuning: Tuning) -> Graphs:
    """Say how contexts are to be made, as far as this TensorRT can be told; return who captures CUDA graphs."""
    trt, engine = held.opened.trt, held.opened.engine
    if not hasattr(engine, "create_runtime_config"):
        return "ours" if tuning.speed.cuda_graphs else "none"
    runtime_config = held.runtime_config = engine.create_runtime_config()
    if runtime_config is None:
        raise BackendError(f"{trt.__name__} gave no runtime configuration: {held.opened.journal.cause()}")
    if len(held.opened.profiles) > 1:  # else each context takes the memory of the largest profile
        strategy = trt.ExecutionContextAllocationStrategy.ON_PROFILE_CHANGE
        runtime_config.set_execution_context_allocation_strategy(strategy)
    if hasattr(runtime_config, "dynamic_shapes_kernel_specialization_strategy"):
        chosen = {
            "lazy": trt.DynamicShapesKernelSpecializationStrategy.LAZY,
            "eager": trt.DynamicShapesKernelSpecializationStrategy.EAGER,
            "none": trt.DynamicShapesKernelSpecializationStrategy.NONE,
        }
        runtime_config.dynamic_shapes_kernel_specialization_strategy = chosen[tuning.speed.specialisation]
    held.cache.attach(runtime_config)
    return _graphs(trt, runtime_config, tuning)


def _graphs(trt: Any, runtime_config: Any, tuning: Tuning) -> Graphs:
    """Let TensorRT-RTX capture by itself, which knows when its kernels are ready; else capture here."""
    if not tuning.speed.cuda_graphs:
        return "none"
    if hasattr(runtime_config, "cuda_graph_strategy"):
        runtime_config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        if runtime_config.cuda_graph_strategy == trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE:  # it may have refused
            return "theirs"
    return "ours"


def _new_context(held: _Held) -> Any:
    engine, runtime_config = held.opened.engine, held.runtime_config
    context = engine.create_execution_context(*(() if runtime_config is None else (runtime_config,)))
    if context is None:
        name = held.opened.trt.__name__
        raise BackendError(f"{name} gave no execution context: {held.opened.journal.cause()}")
    return context


def _rows(name: str, value: Any) -> int:
    shape = getattr(value, "shape", None)
    if shape is None:
        shape = getattr(value, "__cuda_array_interface__", {}).get("shape")
    if not shape:
        raise InputError(f"input {name!r}: expected an array with a batch axis, got {type(value).__name__}.")
    return int(shape[0])
