"""The command ``evaluate-model``: how often a bundle is right on labelled pictures, and how sure that is."""

import io
import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import islice
from typing import Any

import click
import numpy as np
import numpy.typing as npt

from engineworks.runtime.bundle import REFERENCE, open_bundle
from engineworks.runtime.classify import label_of, softmax
from engineworks.runtime.command import DeviceType, Progress, duration, leave, status_of
from engineworks.runtime.compare import agreement, order
from engineworks.runtime.crops import TEN, ten_crops
from engineworks.runtime.dataset import Dataset, open_dataset
from engineworks.runtime.errors import BackendError, BundleError, InputError
from engineworks.runtime.intervals import mcnemar, paired_difference, wilson
from engineworks.runtime.loading import load
from engineworks.runtime.preprocessing import preprocess
from engineworks.runtime.session import Session

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Evaluation:
    """What a bundle answered: for each picture that could be read its place, its class, and the classes found.

    ``ranked`` is ``(N, 5)``, best first, or narrower where there are fewer classes; ``unreadable`` names pictures with
    the reason; ``seconds`` is the time of everything, reading among it.
    """

    places: Array
    truth: Array
    ranked: Array
    unreadable: tuple[str, ...]
    seconds: float

    @property
    def right(self) -> npt.NDArray[np.bool_]:
        """Which pictures got their class first, ``(N,)``."""
        return np.asarray(self.ranked[:, 0] == self.truth)

    @property
    def among_five(self) -> npt.NDArray[np.bool_]:
        """Which pictures got their class among the first five, ``(N,)``."""
        return np.asarray((self.ranked == self.truth[:, None]).any(axis=1))


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(argv: list[str] | None = None) -> int:
    """Run ``evaluate-model`` with these arguments (default: the process's own); return its exit status."""
    return status_of(_command, "evaluate-model", argv)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("paths", metavar="BUNDLE [OTHER]", nargs=-1, required=True)
@click.option("--data", required=True, help="A folder for each class, or a list file of lines PICTURE CLASS.")
@click.option("--ten-crop", is_flag=True, help="Average the probabilities of ten crops (ResNet paper, table 2).")
@click.option("--device", type=DeviceType(), default="auto", show_default=True, help="Where models run.")
@click.option("--limit", type=click.IntRange(min=1), help="Only so many pictures, evenly spread.")
@click.option("--worst", type=click.IntRange(min=0), default=5, show_default=True, help="Show so many worst classes.")
@click.option("--json", "as_json", is_flag=True, help="Print everything for programs.")
def _command(
    paths: tuple[str, ...], data: str, ten_crop: bool, device: Any, limit: int | None, worst: int, as_json: bool
) -> int:
    """Tell how often BUNDLE is right on labelled pictures; with OTHER, whether the two differ."""
    if len(paths) > 2:
        raise click.UsageError("expected one bundle or two.")
    found = [_evaluated(path, data, ten_crop, device, limit, worst) for path in paths]
    reports: list[dict[str, Any]] = [report for report, _ in found]
    whole: dict[str, Any] = {"bundles": reports}
    if len(found) == 2:
        whole["paired"] = paired(found[0][1], found[1][1])
    click.echo(json.dumps(whole, indent=2, ensure_ascii=False) if as_json else "\n".join(_lines(whole)))
    unreadable = sum(len(evaluation.unreadable) for _, evaluation in found)
    if unreadable:
        click.echo(f"evaluate-model: {unreadable} pictures could not be read and are left out.", err=True)
    return int(bool(unreadable))


def _evaluated(
    path: str, data: str, ten_crop: bool, device: Any, limit: int | None, worst: int
) -> tuple[dict[str, Any], Evaluation]:
    bundle = open_bundle(path)
    with load(path, device=device) as session:
        recipe, classes = session.preprocessing, session.outputs[0].shape[1]
        assert recipe and isinstance(classes, int)
        pictures = thinned(open_dataset(data, session.labels, classes), limit)
        progress = Progress(session.manifest.name, len(pictures.pictures))
        try:
            found = evaluate(session, pictures, ten_crop=ten_crop, at=progress.at)
        finally:
            progress.close()
        report = {
            "bundle": session.manifest.name,
            "summary": session.manifest.summary,
            "backend": str(session.backend),
            "data": {
                "path": data,
                "pictures": len(pictures.pictures),
                "classes": len(np.unique(found.truth)),
                "mapping": pictures.mapping,
                "passed_over": pictures.passed_over,
            },
            "crops": TEN if ten_crop else 1,
            **summary(found, session.labels, worst),
            "original": original(session, bundle.read(REFERENCE)) if REFERENCE in bundle.manifest.files else None,
        }
    return report, found


def evaluate(
    session: Session, data: Dataset, *, ten_crop: bool = False, at: Callable[[int], None] = lambda done: None
) -> Evaluation:
    """Run a bundle on labelled pictures, a batch in memory at a time.

    Args:
        session: a loaded classifier.
        data: the pictures, and the class of each.
        ten_crop: average the probabilities of ten crops; else one from the centre.
        at: told how many pictures are done.

    Raises:
        InputError: no picture could be read, or ten crops of a recipe without a crop.
        BackendError: the network answers NaN or infinity, or fails.
        BundleError: no classifier of pictures.
    """
    began, recipe, scores = time.perf_counter(), session.preprocessing, session.manifest.scores
    places, truth, ranked, unreadable = list[int](), list[int](), list[Array](), list[str]()
    if ten_crop and recipe.crop is None:
        raise InputError(f"bundle {session.manifest.name}: its preprocessing has no crop. Leave --ten-crop out.")

    def rows() -> Iterator[Array]:
        for place, (file, index) in enumerate(data.pictures):
            try:
                some = ten_crops(file, recipe) if ten_crop else preprocess(file, recipe)
            except InputError as error:
                unreadable.append(str(error))
                continue
            places.append(place)
            truth.append(index)
            yield from some

    answers = session.infer_batch(rows())
    while some := [*islice(answers, TEN if ten_crop else 1)]:
        values = np.stack(some)
        if not np.isfinite(values).all():
            name = data.pictures[places[len(ranked)]][0]
            raise BackendError(f"bundle {session.manifest.name}: answered NaN or infinity to {name}.")
        ranked.append(
            order(softmax(values, scores).mean(axis=0), "logits")[:5] if ten_crop else order(values[0], scores)[:5]
        )
        at(len(ranked) + len(unreadable))
    if not ranked:
        raise InputError(f"data: none of {len(data.pictures)} pictures could be read; the first: {unreadable[0]}")
    spent = time.perf_counter() - began
    return Evaluation(np.array(places), np.array(truth), np.stack(ranked), tuple(unreadable), spent)


def thinned(data: Dataset, limit: int | None) -> Dataset:
    """Keep at most ``limit`` pictures, evenly spread, so that every class has its share."""
    total = len(data.pictures)
    if limit is None or limit >= total:
        return data
    kept = tuple(data.pictures[number * total // limit] for number in range(limit))
    return Dataset(kept, data.mapping, data.passed_over)


def summary(found: Evaluation, labels: tuple[str, ...], worst: int) -> dict[str, Any]:
    """Return the figures of an evaluation: top-1 and top-5 with 95 % intervals, the worst classes, the time."""
    return {
        "top1": _share(found.right),
        "top5": _share(found.among_five),
        "worst": [*islice(_worst(found, labels), worst)],
        "unreadable": list(found.unreadable),
        "seconds": round(found.seconds, 3),
        "pictures_per_second": round(len(found.truth) / found.seconds, 1),
    }


def _share(right: npt.NDArray[np.bool_]) -> dict[str, Any]:
    number, total = int(right.sum()), len(right)
    low, high = wilson(number, total)
    return {"right": number, "of": total, "share": number / total, "low": low, "high": high}


def _worst(found: Evaluation, labels: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    """Yield the classes with mistakes, worst first, each with what it is taken for most often."""
    rows = []
    for index in np.unique(found.truth):
        winners = found.ranked[found.truth == index, 0]
        wrong = Counter(int(winner) for winner in winners if winner != index)
        if wrong:
            other, times = min(wrong.items(), key=lambda item: (-item[1], item[0]))
            rows.append((1 - wrong.total() / len(winners), int(index), len(winners), wrong.total(), other, times))
    for _, index, total, mistakes, other, times in sorted(rows):
        yield {
            "class": label_of(index, labels),
            "index": index,
            "right": total - mistakes,
            "of": total,
            "taken_for": label_of(other, labels),
            "times": times,
        }


def original(session: Session, content: bytes) -> dict[str, Any]:
    """Run the recorded samples again and compare with what the PyTorch original answered to them.

    Args:
        session: the bundle's.
        content: its ``reference.npz``: arrays ``input:NAME`` and ``output:NAME``.

    Raises:
        BundleError: no such arrays in it.
    """
    try:
        with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
            inputs = {tensor.name: arrays[f"input:{tensor.name}"] for tensor in session.inputs}
            wanted = {tensor.name: arrays[f"output:{tensor.name}"] for tensor in session.outputs}
    except (KeyError, ValueError, OSError, EOFError) as error:
        raise BundleError(
            f"bundle {session.manifest.name}: {REFERENCE} holds no recorded answers ({error})."
        ) from error
    except Exception as error:  # zipfile's and zlib's own classes
        raise BundleError(f"bundle {session.manifest.name}: {REFERENCE} cannot be read ({error}).") from error
    found = list(session.infer_batch(inputs))
    name = session.outputs[0].name
    figures = agreement(wanted[name], np.stack([row[name] for row in found]), session.manifest.scores)
    return {"rows": len(found)} | {key: _finite(value) for key, value in asdict(figures).items()}


def _finite(value: float) -> float | None:
    """Return a number that JSON has; None for infinity, which only equal outputs or broken ones give."""
    return value if np.isfinite(value) else None


def paired(first: Evaluation, second: Evaluation) -> dict[str, Any]:
    """Compare two evaluations of the same pictures.

    Raises:
        InputError: they have no picture in common.
    """
    common, one, two = np.intersect1d(first.places, second.places, assume_unique=True, return_indices=True)
    if not len(common):
        raise InputError("the two bundles could read no picture in common. Nothing can be compared.")
    left, right = first.right[one], second.right[two]
    only_first, only_second = int((left & ~right).sum()), int((right & ~left).sum())
    low, high = paired_difference(only_second, only_first, len(common))
    return {
        "pictures": len(common),
        "both_right": int((left & right).sum()),
        "only_first": only_first,
        "only_second": only_second,
        "both_wrong": int((~left & ~right).sum()),
        "same_answer": float((first.ranked[one, 0] == second.ranked[two, 0]).mean()),
        "difference_points": 100 * (only_second - only_first) / len(common),
        "low_points": 100 * low,
        "high_points": 100 * high,
        "p": mcnemar(only_first, only_second),
    }


def _lines(whole: dict[str, Any]) -> Iterator[str]:
    for report in whole["bundles"]:
        yield from _bundle_lines(report)
    if "paired" in whole:
        p = whole["paired"]
        first, second = (report["bundle"] for report in whole["bundles"])
        yield f"{second} against {first}, {p['pictures']:,} pictures"
        yield _row(
            "right",
            f"both {p['both_right']:,}, only the first {p['only_first']:,}, only the second "
            f"{p['only_second']:,}, none {p['both_wrong']:,}; the same answer to {p['same_answer']:.2%}",
        )
        sure = "a difference" if p["p"] < 0.05 else "no difference that these pictures show"
        points = f"{p['difference_points']:+.2f} points (95 %: {p['low_points']:+.2f} to {p['high_points']:+.2f})"
        yield _row("top-1", f"{points}, p = {p['p']:.3g} (McNemar, exact): {sure}")


def _bundle_lines(report: dict[str, Any]) -> Iterator[str]:
    data = report["data"]
    others = f"; {data['passed_over']:,} other files passed over" if data["passed_over"] else ""
    yield f"{report['summary']} on {report['backend']}"
    yield _row(
        "data",
        f"{data['path']}: {data['pictures']:,} pictures of {data['classes']:,} classes; {data['mapping']}{others}",
    )
    yield _row("crops", "ten, probabilities averaged" if report["crops"] == TEN else "one, from the centre")
    for key, name in (("top1", "top-1"), ("top5", "top-5")):
        s = report[key]
        yield _row(name, f"{s['share']:.2%} (95 %: {s['low']:.2%} to {s['high']:.2%}), {s['right']:,} of {s['of']:,}")
    if report["original"]:
        o = report["original"]
        decibels = "bit for bit" if o["sqnr_db"] is None and o["max_abs"] == 0 else f"{o['sqnr_db']} dB"
        decibels = f"{o['sqnr_db']:.1f} dB" if isinstance(o["sqnr_db"], float) else decibels
        yield _row("original", f"{o['rows']} recorded rows: {decibels}, top-1 agrees on {o['top1']:.0%}")
    for worst in report["worst"]:
        yield _row(
            "worst",
            f"{worst['class']}: {worst['right']} of {worst['of']} right; most often taken for "
            f"{worst['taken_for']} ({worst['times']})",
        )
    yield from (_row("unreadable", told) for told in report["unreadable"])
    yield _row("time", f"{duration(report['seconds'])}, {report['pictures_per_second']:,} pictures a second")


def _row(head: str, text: str) -> str:
    return f"  {head:<10} " + "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


if __name__ == "__main__":
    run()
