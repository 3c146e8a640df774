"""Parity again, on this host: a bundle's stored inputs and the original's answers, on every backend that runs here."""

import io
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from engineworks.runtime.backend import ENGINES, BackendSession, open_bundle_session
from engineworks.runtime.bundle import GRAPH, REFERENCE, Bundle
from engineworks.runtime.compare import Agreement, Floats, agreement, order
from engineworks.runtime.errors import BackendError, BundleError
from engineworks.runtime.manifest import Rung, Scores
from engineworks.runtime.protocol import Array, Device
from engineworks.runtime.relations import Relation, relations

_MARGIN_DB = 6.02  # one bit
TF32_DB = (24 - 11) * 6.02  # bits of a significand that TF32 drops (CUDA programming guide)


@dataclass(frozen=True)
class Compared:
    """One output at one batch size: the figures, and the least decibels that pass.

    ``flips`` tells of each row whose winner is another: how far the winner stood out, and how large the difference is.
    """

    output: str
    batch: int
    figures: Agreement
    required_db: float
    flips: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether the figures reach what is required."""
        return self.figures.sqnr_db >= self.required_db


@dataclass(frozen=True)
class Step:
    """One output at the usual batch, held against the rung before this one; figures alone, for nothing is required."""

    before: str
    output: str
    batch: int
    figures: Agreement


@dataclass(frozen=True)
class Checked:
    """What one rung answered, a backend with its graph; ``problem`` says why it did not run, where it did not.

    ``steps`` hold it against the rung that ran before it, where there is one.
    """

    backend: str
    problem: str = ""
    compared: tuple[Compared, ...] = ()
    relations: tuple[Relation, ...] = ()
    required_db: float = 0.0
    """The least for a relation: two answers to one row may differ as each does from the truth, and by a bit more."""
    steps: tuple[Step, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether all that was compared agrees; a backend that cannot run here has nothing to fail."""
        related = all(relation.sqnr_db >= self.required_db for relation in self.relations)
        return related and all(compared.passed for compared in self.compared)


def check_bundle(bundle: Bundle, device: Device = "auto") -> Iterator[Checked]:
    """Compare every backend that runs here with the original's stored answers, with the one before, and with itself.

    The graph comes first, on the CPU, and the engines last: rung by rung, as they were made. Where the CPU has a graph
    of its own, it runs ``model.onnx``, too, if it can.

    Args:
        bundle: an opened bundle.
        device: ``auto`` tries all backends; ``cpu`` ONNX Runtime on the CPU alone; ``cuda`` and ``cuda:N`` all but it.

    Raises:
        BundleError: a file is damaged or edited, or holds no reference.
        BackendError: no backend runs here at all.
    """
    stored = stored_reference(bundle)
    before: _Rung | None = None
    for name, asked, where, made in _backends(bundle, device):
        try:
            session = open_bundle_session(made, device=where, backend=asked, strict=where != "cpu")
        except BackendError as error:
            yield Checked(name, str(error))
            continue
        try:
            rung = _Rung(name, made, session, stored)
            yield rung.checked(before)
            before = rung
        finally:
            session.close()
    if before is None:
        raise BackendError(f"bundle {bundle.path.name}: no backend runs it here; each says above why.")


def _backends(bundle: Bundle, device: Device) -> Iterator[tuple[str, Any, Device, Bundle]]:
    gpu: Device = "cuda" if device in {"auto", "cpu"} else device
    if device in {"auto", "cpu"}:
        if bundle.manifest.precision.asked == "int8" and bundle.manifest.graph.get("cpu", GRAPH) != GRAPH:
            graph = {key: value for key, value in bundle.manifest.graph.items() if key != "cpu"}
            yield f"{GRAPH} on cpu", "onnxruntime", "cpu", Bundle(bundle.path, replace(bundle.manifest, graph=graph))
        yield "onnxruntime-cpu", "onnxruntime", "cpu", bundle
    if device != "cpu":
        yield "onnxruntime-cuda", "onnxruntime", gpu, bundle
        made = {record.flavour for record in bundle.manifest.engines}
        yield from ((flavour, flavour, gpu, bundle) for flavour in ENGINES if flavour in made)


def stored_reference(bundle: Bundle) -> dict[str, Array]:
    """Return the stored inputs and the original's answers: ``input:NAME`` and ``output:NAME`` → rows.

    Raises:
        BundleError: the file is damaged, or holds something else.
    """
    with np.load(io.BytesIO(bundle.read(REFERENCE)), allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    wanted = {f"input:{t.name}" for t in bundle.manifest.inputs} | {f"output:{t.name}" for t in bundle.manifest.outputs}
    if set(arrays) != wanted:
        raise BundleError(f"bundle {bundle.path.name}: {REFERENCE} holds {sorted(arrays)}, expected {sorted(wanted)}.")
    return arrays


class _Rung:
    """One backend with its graph, and what it answers at each batch size: (output, rows) → answers."""

    def __init__(self, name: str, bundle: Bundle, session: BackendSession, stored: Mapping[str, Array]) -> None:
        self.name, self.answers = name, dict[tuple[str, int], Floats]()
        self._bundle, self._session, self._stored = bundle, session, stored

    def checked(self, before: "_Rung | None") -> Checked:
        """Run it and compare."""
        found = _checked(self._bundle, self._session, self._stored, self.answers)
        return replace(found, backend=self.name, steps=tuple(self._steps(before)) if before is not None else ())

    def _steps(self, before: "_Rung") -> Iterator[Step]:
        manifest = self._bundle.manifest
        for tensor in manifest.outputs:
            key = tensor.name, manifest.batch.opt
            if np.isfinite(before.answers[key]).all():
                yield Step(before.name, *key, agreement(before.answers[key], self.answers[key], manifest.scores))


def _checked(
    bundle: Bundle, session: BackendSession, stored: Mapping[str, Array], kept: dict[tuple[str, int], Floats]
) -> Checked:
    """Hold a session against the original and itself; ``kept`` is given its answers."""
    manifest = bundle.manifest
    names = [tensor.name for tensor in manifest.outputs]
    rungs = rungs_of(bundle, session.backend.name)
    lost = lost_to_tf32(bundle, session)
    found: list[Compared] = []
    for size in sorted({manifest.batch.min, manifest.batch.opt, manifest.batch.max}):
        answers = session.run(_rows(bundle, stored, size), names)
        for tensor, answer in zip(manifest.outputs, answers, strict=True):
            truth: Floats = _cut(stored[f"output:{tensor.name}"], size).astype(np.float64)
            got: Floats = np.array(answer, np.float64)
            kept[tensor.name, size] = got
            least = rungs[(tensor.name, size)].required_db - lost
            flips = tuple(flips_of(truth, got, manifest.scores))
            found.append(Compared(tensor.name, size, agreement(truth, got, manifest.scores), least, flips))
    batch = max(manifest.batch.min, min(manifest.batch.max, max(manifest.batch.opt, 2)))
    related: tuple[Relation, ...] = ()
    if batch > 1:
        inputs = _rows(bundle, stored, batch)
        related = tuple(relations(lambda rows: session.run(rows, names), inputs, manifest.batch.min))
    near = min(max(rung.required_db, (rung.sqnr_db or 0.0) - _MARGIN_DB) for rung in rungs.values()) - lost
    return Checked(session.backend.name, "", tuple(found), related, near)


def lost_to_tf32(bundle: Bundle, session: BackendSession) -> float:
    """Return the decibels by which an engine may miss its graph's figures: where noted, it may compute in TF32."""
    return TF32_DB * (session.backend.name in ENGINES and any("TF32" in note for note in bundle.manifest.notes))


def _rows(bundle: Bundle, stored: Mapping[str, Array], size: int) -> dict[str, Array]:
    return {tensor.name: _cut(stored[f"input:{tensor.name}"], size) for tensor in bundle.manifest.inputs}


def _cut(rows: Array, size: int) -> Array:
    return np.ascontiguousarray(rows[np.arange(size) % len(rows)])


def rungs_of(bundle: Bundle, backend: str) -> dict[tuple[str, int], Rung]:
    """Return for each output and batch size the rung of the graph that this backend runs."""
    manifest = bundle.manifest
    asked, twin = manifest.precision.asked, manifest.graph.get("cpu", GRAPH) != GRAPH
    on_cpu = backend == "onnxruntime-cpu" and twin
    names = {f"onnx-{asked}-cpu"} if on_cpu and asked == "int8" else {f"onnx-{asked}", f"onnx-{asked}-emulated"}
    found = {(rung.output, rung.batch): rung for rung in manifest.parity if rung.candidate in names}
    if not found:
        raise BundleError(f"bundle {bundle.path.name}: it records no comparison of its graph. Re-run export-model.")
    return found


def flips_of(truth: Floats, got: Floats, scores: Scores) -> Iterator[str]:
    """Say of each row whose winner is another whether it stood out by more than the row's own difference."""
    if truth.ndim != 2 or truth.shape[1] < 2 or not np.isfinite(got).all():
        return
    best, won = order(truth, scores)[:, :2], order(got, scores)[:, 0]
    for row in np.flatnonzero(best[:, 0] != won):
        margin = abs(float(truth[row, best[row, 0]]) - float(truth[row, won[row]]))
        noise = float(np.abs(truth[row] - got[row])[[best[row, 0], won[row]]].sum())
        words = "a near tie that the difference explains" if margin <= noise else "more than the difference explains"
        yield f"row {row}: class {best[row, 0]} became {won[row]}; it stood out by {margin:.3g}, {words} ({noise:.3g})"
