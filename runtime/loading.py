"""From a bundle on disk to a session: every digest checked first, then the backend is given the files.

What runs a session is imported inside ``load``, while the graph's digest is computed.
"""

from collections.abc import Mapping
from contextlib import ExitStack, suppress
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.runtime.ahead import Ahead
from engineworks.runtime.bundle import GRAPH, Bundle, open_bundle
from engineworks.runtime.errors import BackendError

if TYPE_CHECKING:
    from engineworks.runtime.backend import BackendName, Device
    from engineworks.runtime.checks import Nan
    from engineworks.runtime.inflight import Runner
    from engineworks.runtime.session import Session


def load(
    path: Path | str,
    *,
    device: "Device" = "auto",
    backend: "BackendName" = "auto",
    strict: bool = False,
    threads: int = 0,
    contexts: int = 2,
    max_batch: int | None = None,
    nan: "Nan" = "pass",
) -> "Session":
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
    cpu = str(bundle.manifest.graph.get("cpu", GRAPH))  # stands for the typed graph where the CPU lacks its kernels
    names = {GRAPH, cpu} if _runs_without_a_gpu(device, backend) else set[str]()
    with ExitStack() as stack:
        graphs = {name: stack.enter_context(Ahead(bundle, name)) for name in names}
        from engineworks.runtime.backend import check_choice, open_bundle_session
        from engineworks.runtime.checks import contract
        from engineworks.runtime.session import Session

        rules = contract(bundle.manifest.inputs, bundle.manifest.batch, max_batch, nan)
        check_choice(backend, device)
        asked: dict[str, Any] = {"device": device, "strict": strict, "threads": threads}
        more: dict[str, Any] = {"backend": backend, "contexts": contexts, "max_batch": max_batch}
        try:
            runner: Runner = (
                _open(bundle, graphs, cpu, **asked) if graphs else open_bundle_session(bundle, **asked, **more)
            )
        except MemoryError as error:
            raise BackendError(
                f"bundle {bundle.manifest.name}: out of memory while it was opened. Free some."
            ) from error
    return Session(bundle, runner, rules=rules, contexts=contexts)


def _runs_without_a_gpu(device: object, backend: object) -> bool:
    """Whether ONNX Runtime on the CPU is what is meant, or all that there is."""
    if backend not in {"auto", "onnxruntime"} or device not in {"auto", "cpu"}:
        return False
    if device == "cpu":
        return True
    from engineworks.runtime.cuda import probe_gpu

    return not probe_gpu().target


def _open(
    bundle: Bundle, graphs: Mapping[str, Ahead], cpu: str, *, device: "Device", strict: bool, threads: int
) -> "Runner":
    """Let ONNX Runtime open a graph when every file has been checked; where there is no GPU, this is quickest."""
    from engineworks.runtime.backend import open_session

    with suppress(Exception):  # while the digest is computed; if it fails, open_session says why
        import_module("onnxruntime")
    bundle.verify(all_but=graphs)
    paths = {name: graph.path() for name, graph in graphs.items()}
    return open_session(paths[GRAPH], device, strict=strict, threads=threads, cpu_graph=paths[cpu])
