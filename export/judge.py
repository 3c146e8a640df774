"""What an accuracy budget is judged on: pictures, their classes where these are known, and float32's answers to them.

Labelled pictures (``--data``), or the held-out calibration images, on which a network should answer as float32 does.
Graphs run in ONNX Runtime, Q and DQ kept apart, as ``model.onnx`` does in a bundle.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from engineworks.calibration.budget import Drop, least_pictures
from engineworks.calibration.prefetch import prefetch
from engineworks.calibration.source import Images, Item, OnSkip, Row
from engineworks.runtime.backend import open_session
from engineworks.runtime.compare import order
from engineworks.runtime.dataset import open_dataset
from engineworks.runtime.errors import ExportError, InputError
from engineworks.runtime.intervals import wilson
from engineworks.runtime.manifest import Scores
from engineworks.runtime.ort_session import Optimise
from engineworks.runtime.preprocessing import Preprocessing, preprocess

if TYPE_CHECKING:
    from onnx import ModelProto

Array = npt.NDArray[Any]
At = Callable[[float], None]
Batches = Callable[[], Iterator[tuple[Row, int]]]
_ROWS = 8  # that run at once
_ROOM = 1 << 30  # bytes of prepared pictures that are kept; of more, each is read again at each evaluation


@dataclass(frozen=True)
class Judge:
    """What networks are judged on: pictures, what float32 answers to them, and their classes where these are known.

    Attributes:
        batches: begins a pass over the pictures: inputs by name, and how many of their rows count.
        exact: ``(N,)``, the class that float32 puts first.
        truth: ``(N,)``, the pictures' own classes; None where they are not known.
        scores: how the network ranks.
        description: where the pictures come from.
        sha256: of their content and classes.
    """

    batches: Batches
    exact: Array
    truth: Array | None
    scores: Scores
    description: str
    sha256: str

    @property
    def what(self) -> str:
        """What the figures are of, in words."""
        return "labelled pictures" if self.truth is not None else "held-out calibration images, by other answers"

    def drop(self, graph: "ModelProto", at: At = lambda share: None, optimise: Optimise = "float") -> Drop:
        """Run a graph on all pictures and count; ``at`` is told how much is done, and may raise ``Stopped``."""
        found = _winners(graph, self.batches, self.scores, optimise, lambda done: at(done / len(self.exact)))
        if self.truth is None:
            return Drop(int((found != self.exact).sum()), 0, len(found), labelled=False)
        before, after = self.exact == self.truth, found == self.truth
        return Drop(int((before & ~after).sum()), int((~before & after).sum()), len(found))


def labelled_pictures(
    data: str,
    name: str,
    recipe: Preprocessing | None,
    labels: tuple[str, ...],
    classes: int,
    on_skip: OnSkip,
) -> Images:
    """Open ``--data``: pictures with their classes, for the input ``name`` of a network that tells ``classes`` apart.

    Raises:
        ExportError: no such data, a class that the network does not know, or a network that takes no pictures.
    """
    if recipe is None:
        raise ExportError("--data: how pictures are prepared for this network is not known. Give --mean and --std.")
    try:
        found = open_dataset(data, labels, classes)
    except InputError as error:
        raise ExportError(f"--{error}") from error

    def item(file: Path, label: int) -> Item:
        return Item(file.name, label, lambda: {name: preprocess(file, recipe)}, lambda: _content(file))

    items = [item(file, label) for file, label in found.pictures]
    words = f"{len(items)} labelled pictures of {Path(data).name}, {found.mapping}"
    return Images(words, len(items), lambda: items, on_skip)


def _content(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # it will be named when it is read


def data_digest(data: str) -> str:
    """Return the sha256 of what ``--data`` names: of each file's path below it and content.

    Raises:
        ExportError: there is no such folder or list.
    """
    path = Path(data)
    if path.is_dir():  # class folders may be links
        found = [file for top in path.iterdir() for file in (top, *top.rglob("*"))]
        files = sorted(file for file in found if _is_file(file))
    elif path.is_file():
        files = [path, *_listed(path)]
    else:
        raise ExportError(f"--data {data}: there is no such folder or list.")
    whole = hashlib.sha256()
    for file in files:
        name = file.relative_to(path).as_posix() if path.is_dir() else file.name
        whole.update(f"{name}\0{hashlib.sha256(_content(file)).hexdigest()}\n".encode(errors="surrogateescape"))
    return whole.hexdigest()


def _listed(file: Path) -> Iterator[Path]:
    """Yield the pictures that a list names, however its lines are parted."""
    lines = [line.strip() for line in file.read_text("utf-8", errors="replace").splitlines()]
    for line in filter(None, lines):
        named = (file.parent / line.rsplit(sign, 1)[0].strip() for sign in ("\t", ",", None))
        yield from dict.fromkeys(other for other in named if _is_file(other))


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # a name that is too long, or none
        return False


def open_judge(graph: "ModelProto", images: Images, allowed: float, scores: Scores, *, labelled: bool) -> Judge:
    """Ask float32 for its answers, once.

    Args:
        graph: the float32 network; its first output is ``(N, K)``, K classes.
        images: the pictures, with their classes where they are ``labelled``.
        allowed: the budget, in percentage points.
        scores: how the network ranks.

    Raises:
        ExportError: a network that is no classifier, too few pictures to show the budget, an answer to all of them, or
            classes that float32 does no better at than guessing.
    """
    classes = class_count(graph)
    _check_enough(images.count, allowed, labelled)
    rows, truth = _rows(images)
    _check_enough(len(truth), allowed, labelled)
    batches = _batched(rows, _fixed_rows(graph))
    exact = _winners(graph, batches, scores, "all", lambda done: None)
    if len(set(exact.tolist())) == 1:
        raise ExportError(
            f"--max-drop: float32 answers all {len(exact)} pictures alike ({images.description}): that proves nothing."
        )
    known = np.array(truth) if labelled else None
    if known is not None and wilson(right := int((exact == known).sum()), len(exact))[0] <= 1 / classes:
        raise ExportError(
            f"--data: float32 itself is right on {right} of {len(exact)} pictures, no better than guessing among "
            f"{classes}: it has nothing to lose. Do the classes of {images.description} fit the network's, and its "
            "--weights?"
        )
    digest = hashlib.sha256(f"{images.sha256} {truth}".encode()).hexdigest()
    return Judge(batches, exact, known, scores, images.description, digest)


def class_count(graph: "ModelProto") -> int:
    """Return how many classes the network tells apart.

    Raises:
        ExportError: its first output is not ``(N, K)`` with a known K of 2 or more.
    """
    shape = [axis.dim_value for axis in graph.graph.output[0].type.tensor_type.shape.dim]
    if len(shape) != 2 or shape[1] < 2:
        raise ExportError("--max-drop: this network is no classifier: its first output is not one row of classes.")
    return int(shape[1])


def _check_enough(count: int, allowed: float, labelled: bool) -> None:
    least = least_pictures(allowed)
    if count >= least:
        return
    what = "labelled pictures" if labelled else "held-out calibration images"
    mend = "Give more" if labelled else f"Give --calib-images {4 * least} (a quarter is held out), or --data"
    shown = Drop(0, 0, max(count, 1)).interval[1]
    raise ExportError(
        f"--max-drop {allowed:g}: {count} {what} cannot show so small a drop: though no answer changed, up to "
        f"{shown:.2f} points could be lost (95 %). It takes {least}. {mend}, or allow more."
    )


def _rows(images: Images) -> tuple[Callable[[], Iterator[Row]], list[int]]:
    """Read all pictures once; keep them where they fit into memory."""
    kept: list[Row] = []
    truth: list[int] = []
    size = 0
    try:
        for row, label in prefetch(images.labelled()):
            truth.append(-1 if label is None else label)
            size += sum(array.nbytes for array in row.values())
            if size <= _ROOM:
                kept.append(row)
    except InputError as error:
        raise ExportError(str(error)) from error
    quiet = replace(images, on_skip=lambda name, why: None)  # they were named once
    return (lambda: iter(kept)) if size <= _ROOM else (lambda: prefetch(iter(quiet))), truth


def _batched(rows: Callable[[], Iterator[Row]], fixed: int) -> Batches:
    """Put rows together; where the graph's batch is fixed the last is filled up with repeats, which do not count."""

    def joined(few: list[Row]) -> tuple[Row, int]:
        filled = [few[number % len(few)] for number in range(fixed or len(few))]
        return {name: np.concatenate([row[name] for row in filled]) for name in few[0]}, len(few)

    def batches() -> Iterator[tuple[Row, int]]:
        few: list[Row] = []
        for row in rows():
            few.append(row)
            if len(few) == (fixed or _ROWS):
                yield joined(few)
                few = []
        if few:
            yield joined(few)

    return batches


def _fixed_rows(graph: "ModelProto") -> int:
    return max((int(value.type.tensor_type.shape.dim[0].dim_value) for value in graph.graph.input), default=0)


def _winners(
    graph: "ModelProto",
    batches: Batches,
    scores: Scores,
    optimise: Optimise,
    at: Callable[[int], None],
) -> Array:
    """Return the class that each picture gets, ``(N,)``; −1 where an answer is not finite, which is never right."""
    name = graph.graph.output[0].name
    session = open_session(graph.SerializeToString(), "cpu", optimise=optimise)
    found: list[Array] = []
    done = 0
    try:
        for batch, count in batches():
            answers = np.asarray(session.run(batch, [name])[0], np.float32)[:count]
            found.append(np.where(np.isfinite(answers).all(axis=1), order(answers, scores)[:, 0], -1))
            done += count
            at(done)
    finally:
        session.close()
    return np.concatenate(found)
