"""The layers of an engine of TensorRT itself, asked of its own inspector: on a GPU that the engine was built for.

Sizes and formats of an engine with a free batch are told only of an execution context whose batch is set, so one is
made; nothing is run. The plan is native code: whoever calls has checked its digest, or has just compiled it.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from engineworks.runtime import cuda
from engineworks.runtime.engine_layers import read_information
from engineworks.runtime.errors import BackendError, PlanError
from engineworks.runtime.plan import Plan
from engineworks.runtime.trt_journal import Journal, listening
from engineworks.runtime.trt_runtime import batches, clear_frames, deserialise, load_module


def read_engine(plan: bytes, *, version: str, targets: Sequence[str], batch: int) -> Plan:
    """Read an engine's kernels, for one batch.

    Args:
        plan: the engine's bytes, trusted.
        version: the version of TensorRT that built it; ``targets``: the GPU that it was built for, such as ``sm90``.
        batch: how many rows.

    Raises:
        PlanError: no fitting GPU or package here, TensorRT refused, or what it told is not known; the message says it.
    """
    gpu = cuda.probe_gpu()
    if gpu.target is None:
        raise PlanError(f"not readable here: TensorRT reads its own engines, on a GPU alone, and {gpu.problem}")
    if gpu.target not in {target.replace("_", "") for target in targets}:
        raise PlanError(f"not readable here: the engine is for {', '.join(targets)}, and this GPU is {gpu.target}")
    try:
        trt = load_module("tensorrt")
        if str(trt.__version__) != version:
            raise PlanError(f"not readable here: built by tensorrt {version}, and installed is {trt.__version__}")
        device = cuda.Device(cuda.open_driver(), gpu.index)
        with device.current(), _stream(device) as stream:
            try:
                text = _information(trt, plan, batch, device, stream)
            except BaseException as error:
                clear_frames(error)  # they hold TensorRT's objects, which must go while the GPU's context is current
                raise
    except (BackendError, RuntimeError) as error:  # the second is what the bindings raise, where they raise
        raise PlanError(f"not readable here: {error}") from error
    return read_information(text, version=version, targets=targets, batch=batch)


@contextmanager
def _stream(device: cuda.Device) -> Iterator[int]:
    stream = device.make_stream()
    try:
        yield stream
    finally:
        device.destroy_stream(stream)


def _information(trt: Any, plan: bytes, batch: int, device: cuda.Device, stream: int) -> str:
    """Ask the inspector; TensorRT's objects are let go of in the order in which it wants that."""
    journal = Journal()
    with listening(journal):
        runtime, engine, _ = deserialise(trt, plan, "the engine", journal)
        context = engine.create_execution_context()
        inspector = engine.create_engine_inspector()
        try:
            if context is None or inspector is None:
                raise PlanError(f"not readable here: tensorrt gave no context or inspector: {journal.cause()}")
            if problem := _set_batch(trt, engine, context, batch, stream):
                raise PlanError(f"not readable: {problem}{': ' * bool(journal.errors)}{'; '.join(journal.errors)}")
            device.synchronise(stream)
            inspector.execution_context = context
            return str(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
        finally:
            del inspector
            del context
            del engine
            del runtime


def _set_batch(trt: Any, engine: Any, context: Any, batch: int, stream: int) -> str:
    """Choose the profile that takes the batch, and set every input's; return what is in the way, or nothing."""
    names = [engine.get_tensor_name(index) for index in range(engine.num_io_tensors)]
    inputs = [name for name in names if engine.get_tensor_mode(name) == trt.TensorIOMode.INPUT]
    shapes = {name: tuple(engine.get_tensor_shape(name)) for name in inputs}
    if any(-1 in shape[1:] for shape in shapes.values()):
        return f"more than the batch is free in the engine's inputs: {shapes}"
    batched = [name for name, shape in shapes.items() if shape]
    for index in range(max(1, engine.num_optimization_profiles)):
        if all(low <= batch <= high for low, high in (batches(engine, name, index) for name in batched)):
            taken = context.set_optimization_profile_async(index, stream)
            taken = taken and all(context.set_input_shape(name, (batch, *shapes[name][1:])) for name in batched)
            return "" if taken else f"the engine did not take a batch of {batch}"
    return f"no profile of the engine takes a batch of {batch}"
