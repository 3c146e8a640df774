"""Compile an ONNX graph into a TensorRT engine: one code path for TensorRT and TensorRT-RTX.

Importing this module imports neither of them. Features are found by asking the objects, never by comparing versions;
every None and False that the compiler answers with becomes an EngineError with the cause from its log.
"""

import gc
import threading
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engineworks.export.trt_compilers import (
    Choice,
    Compiler,
    Flavour,
    choose_compiler,
    installed_compilers,
    load_compiler,
    probe_gpu,
)
from engineworks.export.trt_journal import (
    Cancelled,
    Journal,
    OnProgress,
    Progress,
    listening,
    make_monitor,
    shared_logger,
)
from engineworks.export.trt_network import (
    Batch,
    add_batch_profile,
    build_throwaway,
    count_layer_types,
    create_network,
    parse_model,
)
from engineworks.export.trt_targets import RTX_TARGETS, PlanHeader, named_targets, parse_targets, read_plan_header
from engineworks.runtime.errors import EngineError
from engineworks.runtime.trt_runtime import clear_frames

__all__ = [
    "RTX_TARGETS",
    "BuildCancelled",
    "Choice",
    "Compiler",
    "Engine",
    "Flavour",
    "PlanHeader",
    "choose_compiler",
    "compile_engine",
    "installed_compilers",
    "parse_targets",
    "read_plan_header",
]


class BuildCancelled(EngineError):
    """The build was stopped because the caller asked for it; nothing is left of it."""


_FLOAT_ALONE = "sm75"  # seen in the plan's text: its int8 layers read half


@dataclass(frozen=True)
class Engine:
    """A compiled engine and the facts worth recording about it."""

    flavour: Flavour
    version: str
    """The compiler's full version; RTX plans and, unless version compatible, TensorRT plans need this very one."""
    targets: tuple[str, ...]
    left_out: Mapping[str, str]
    """Targets of the default list that cannot take this graph, each with the compiler's own words."""
    batch: Batch
    plan: bytes = field(repr=False)
    layers: int
    """Layers of the network that was given to the compiler."""
    layer_types: Mapping[str, int]
    """Convolutions and matrix multiplications by the type they compute in: ``{"convolution fp16": 20}``."""
    tf32: bool
    """Float32 convolutions and matrix multiplications may round their operands to TF32 (10 bits of mantissa)."""
    warnings: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class _Job:
    """One call of compile_engine, checked."""

    flavour: Flavour
    model: bytes | Path
    batch: Batch
    targets: tuple[str, ...]
    progress: Progress


@dataclass(frozen=True)
class _Workshop:
    """The compiler's objects for one build; the parser owns the weights and must live as long as the builder."""

    trt: Any
    journal: Journal
    builder: Any
    network: Any
    parser: Any


def compile_engine(
    model: bytes | Path,
    *,
    flavour: Flavour,
    batch: Batch,
    targets: tuple[str, ...] = (),
    on_progress: OnProgress | None = None,
    cancelled: Cancelled | None = None,
) -> Engine:
    """Compile an ONNX graph whose only dynamic dimension is the batch; precision is the graph's own.

    Args:
        model: the serialised graph, or its path if weights lie in files beside it.
        flavour: ``tensorrt`` compiles for this host's GPU, ``rtx`` for any of ``RTX_TARGETS`` without a GPU.
        batch: smallest, most usual and largest batch, each at least 1.
        targets: such as ``("sm86", "sm89")``; empty for this host's GPU (``tensorrt``), or for every target that can
            take the graph (``rtx``: Turing, sm75, has neither bfloat16 nor float32 matrix multiplication, so nearly
            only float16 networks keep it). What cannot is in ``Engine.left_out``, with the compiler's words.
        on_progress: given a phase's name and how much of it is done, 0 to 1 or None; called in the compiler's thread.
        cancelled: asked at each of the compiler's steps; True stops the build.

    Raises:
        EngineError: the arguments or the graph are wrong, the compiler is absent, or it refused.
        BuildCancelled: ``cancelled`` answered True.

    Anything that ``on_progress`` or ``cancelled`` raises stops the build and is raised again here.

    The compiler runs in a thread of its own while this function waits: in the main thread a Ctrl-C would meet its
    callbacks, be swallowed by C++, and the build would go on. So a KeyboardInterrupt here stops the build at its next
    step (most of an RTX build is one step, up to its whole length) and is raised again. Called from another thread,
    this function sees no KeyboardInterrupt: give ``cancelled``, set it when the main thread is interrupted, and let
    that wait on an Event or a Future, not in Thread.join (which before Python 3.13 takes a thread for finished once it
    was interrupted). A killed process leaves nothing behind: the plan is in memory until it is returned.
    """
    stop = threading.Event()
    progress = Progress(on_progress, lambda: stop.is_set() or (cancelled is not None and cancelled()))
    job = _Job(flavour, model, _checked_batch(batch), _checked_targets(flavour, targets), progress)
    with ThreadPoolExecutor(1, "compile-engine") as pool:
        build = pool.submit(_run, job)
        try:
            return build.result()
        except BaseException:
            stop.set()
            raise


def _checked_batch(batch: Batch) -> Batch:
    smallest, usual, largest = batch
    if not 1 <= smallest <= usual <= largest:
        got = ":".join(map(str, batch))
        raise EngineError(f"batch: expected MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX, got {got}")
    return batch


def _checked_targets(flavour: Flavour, targets: tuple[str, ...]) -> tuple[str, ...]:
    if flavour == "rtx":
        return parse_targets(",".join(targets)) if targets else ()
    gpu = probe_gpu()
    if gpu.target is None:
        raise EngineError(f"tensorrt compiles only where a GPU is: {gpu.problem}. --engine rtx needs none")
    if targets not in ((), (gpu.target,)):
        raise EngineError(f"tensorrt compiles for this host's GPU, {gpu.target}, not for {', '.join(targets)}")
    return (gpu.target,)


def _run(job: _Job) -> Engine:
    """Compile, and let go of the compiler's objects before an error leaves, which would keep them in its frames."""
    journal = Journal()
    try:
        with listening(journal):
            return _compile(job, journal)
    except BaseException as error:
        clear_frames(error)
        raise


def _compile(job: _Job, journal: Journal) -> Engine:
    began = time.perf_counter()
    trt = load_compiler(job.flavour)
    shop = _open_workshop(trt, job, journal)
    plan, targets, left_out = _build_for_targets(shop, job)
    _check_header(plan, job.flavour, targets)
    return Engine(
        flavour=job.flavour,
        version=str(trt.__version__),
        targets=targets,
        left_out=left_out,
        batch=job.batch,
        plan=plan,
        layers=shop.network.num_layers,
        layer_types=count_layer_types(shop.network),
        tf32=_allows_tf32(trt, shop.builder),
        warnings=shop.journal.notices(),
        seconds=time.perf_counter() - began,
    )


def _allows_tf32(trt: Any, builder: Any) -> bool:
    config = builder.create_builder_config()  # TF32 is left as the compiler has it: RTX keeps it on when told not to
    return bool(config.get_flag(trt.BuilderFlag.TF32))


@contextmanager
def _collector_at_rest() -> Iterator[None]:
    """Hold the garbage collector: a builder of someone else's that it ended now could hang us (see trt_journal)."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _open_workshop(trt: Any, job: _Job, journal: Journal) -> _Workshop:
    _stop_if_asked(job.progress)
    logger = shared_logger(trt)
    try:
        with _collector_at_rest():
            builder = trt.Builder(logger)
    except TypeError as error:  # what the bindings raise where the library gave no builder
        raise EngineError(f"{trt.__name__} {trt.__version__} does not start: {journal.cause()}") from error
    network = create_network(trt, builder)
    parser = parse_model(trt, network, logger, model=job.model, journal=journal)
    return _Workshop(trt, journal, builder, network, parser)


def _build_for_targets(shop: _Workshop, job: _Job) -> tuple[bytes, tuple[str, ...], dict[str, str]]:
    """Build; of the default targets, leave out those that the compiler names as the reason why it cannot."""
    default = job.flavour == "rtx" and not job.targets
    targets = RTX_TARGETS if default else job.targets
    left_out: dict[str, str] = {}
    if _FLOAT_ALONE in targets and any(kind.endswith(" int8") for kind in count_layer_types(shop.network)):
        why = "TensorRT-RTX computes int8 layers in float there, without a word"
        if not default:
            raise EngineError(f"{_FLOAT_ALONE}: {why}. Leave it out of the targets, or export with --fp16")
        left_out[_FLOAT_ALONE] = why
        targets = tuple(target for target in targets if target != _FLOAT_ALONE)
    while (plan := _attempt(shop, job, targets)) is None:
        cause = shop.journal.cause()
        build_throwaway(shop.trt, shop.builder)  # else RTX's next build would follow the refused target's rules
        named = named_targets(cause, targets)
        remaining = tuple(target for target in targets if target not in named)
        if not default or not named or not remaining:
            mend = f". Leave {', '.join(named)} out of the targets" if named and remaining else ""
            raise EngineError(f"{shop.trt.__name__} {shop.trt.__version__} refused the graph: {cause}{mend}")
        left_out.update(dict.fromkeys(named, cause))
        targets = remaining
    return plan, targets, left_out


def _attempt(shop: _Workshop, job: _Job, targets: tuple[str, ...]) -> bytes | None:
    trt, builder, journal = shop.trt, shop.builder, shop.journal
    _stop_if_asked(job.progress)
    journal.errors.clear()
    config = builder.create_builder_config()
    config.progress_monitor = make_monitor(trt, job.progress)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED  # the engine inspector then shows realised types
    add_batch_profile(builder, config, shop.network, batch=job.batch, journal=journal)
    if job.flavour == "rtx":
        _set_targets(trt, config, targets, journal)
    memory = builder.build_serialized_network(shop.network, config)
    _stop_if_asked(job.progress)
    return None if memory is None else bytes(memory)


def _set_targets(trt: Any, config: Any, targets: tuple[str, ...], journal: Journal) -> None:
    if not hasattr(config, "set_compute_capability"):
        raise EngineError(f"{trt.__name__} {trt.__version__} takes no targets: a later API than this program knows")
    config.num_compute_capabilities = len(targets)
    for index, target in enumerate(targets):
        capability = getattr(trt.ComputeCapability, target.upper(), None)
        if capability is None or not config.set_compute_capability(capability, index):
            raise EngineError(f"{trt.__name__} {trt.__version__} does not compile for {target}: {journal.cause()}")


def _check_header(plan: bytes, flavour: Flavour, targets: tuple[str, ...]) -> None:
    header = read_plan_header(plan) if flavour == "rtx" else None
    if header is not None and header.targets != targets:
        got = ", ".join(header.targets)
        raise EngineError(f"the compiler was asked for {', '.join(targets)} and made a plan for {got}")


def _stop_if_asked(progress: Progress) -> None:
    if not progress.check():
        return
    if progress.failure is not None:
        raise progress.failure
    raise BuildCancelled("the build was cancelled; nothing is left of it")
