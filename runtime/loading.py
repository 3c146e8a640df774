"""From a bundle on disk to a session: every digest checked first, then the backend is given the files."""

import sys
import threading
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import Any

from engineworks.runtime.backend import (
    ENGINES,
    BackendName,
    Device,
    check_choice,
    open_bundle_session,
    open_session,
)
from engineworks.runtime.bundle import GRAPH, Bundle, open_bundle
from engineworks.runtime.checks import Nan, contract
from engineworks.runtime.cuda import probe_gpu
from engineworks.runtime.errors import BackendError
from engineworks.runtime.inflight import Runner
from engineworks.runtime.session import Session


def load(
    path: Path | str,
    *,
    device: Device = "auto",
    backend: BackendName = "auto",
    strict: bool = False,
    threads: int = 0,
    contexts: int = 2,
    max_batch: int | None = None,
    nan: Nan = "pass",
) -> Session:
    """Open a bundle and make it ready to run.

    Args:
        path: the folder that export-model wrote.
        device: ``auto``, ``cpu``, ``cuda`` or ``cuda:N``.
        backend: ``auto`` takes the best that runs here; ``onnxruntime``, ``tensorrt``, ``rtx`` take that one or fail.
        strict: refuse to pass over an engine made for this GPU, and to fall back to the CPU where a GPU is present.
        threads: CPU threads for one run; 0 lets ONNX Runtime choose.
        contexts: how many batches of ``submit`` and ``ainfer``, and calls on an engine, may be under way at once.
        max_batch: the largest batch of one run, within the bundle's own; None for the bundle's largest.
        nan: ``pass`` hands NaN and infinity on to the network, ``refuse`` makes an InputError of them.

    Returns:
        A ``Session``; close it, or use it in a ``with`` block.

    Raises:
        BundleError: not a bundle, damaged, edited, or of a later schema. Every file's digest is checked first.
        BackendError: nothing can run it here, what was asked for does not work, or the memory does not suffice.
        InputError: ``max_batch`` lies outside the bundle's sizes, or ``nan`` is neither of the two.
    """
    if contexts < 1:
        raise BackendError(f"contexts: expected 1 or more, got {contexts}.")
    bundle = open_bundle(path)
    rules = contract(bundle.manifest.inputs, bundle.manifest.batch, max_batch, nan)
    try:
        place = check_choice(backend, device)
        if backend in ENGINES or (place.kind != "cpu" and probe_gpu(place.index).target):
            runner: Runner = open_bundle_session(
                bundle,
                device=device,
                backend=backend,
                strict=strict,
                contexts=contexts,
                max_batch=max_batch,
                threads=threads,
            )
        else:
            runner = _open(bundle, device, strict=strict, threads=threads)
    except MemoryError as error:
        raise BackendError(f"bundle {bundle.manifest.name}: out of memory while it was opened. Free some.") from error
    return Session(bundle, runner, rules=rules, contexts=contexts)


def _open(bundle: Bundle, device: Device, *, strict: bool, threads: int) -> Runner:
    """Check every file of the bundle, then let ONNX Runtime open its graph; where there is no GPU, this is quickest."""
    cpu = str(bundle.manifest.graph.get("cpu", GRAPH))  # stands for the typed graph where the CPU lacks its kernels
    _import_meanwhile()
    with ExitStack() as stack:
        graphs: dict[str, Any] = {name: stack.enter_context(bundle.checked(name)) for name in {GRAPH: 0, cpu: 0}}
        bundle.verify(all_but=graphs)
        return open_session(graphs[GRAPH], device, strict=strict, threads=threads, cpu_graph=graphs[cpu])


def _import_meanwhile() -> None:
    """Import onnxruntime in a thread while digests are computed; if it fails, ``open_session`` says why."""

    def load_it() -> None:
        with suppress(Exception):
            import_module("onnxruntime")

    if "onnxruntime" not in sys.modules:
        threading.Thread(target=load_it, name="engineworks-import").start()
