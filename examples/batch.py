"""Name every picture below a folder, into a table: ``python batch.py BUNDLE FOLDER OUT.csv``."""

import csv
import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from engineworks import runtime

KINDS = {".jpg", ".jpeg", ".png", ".webp"}


def main(bundle: str, folder: str, out: str) -> int:
    """Write path, label, probability and error for each picture; return 1 where one could not be read."""
    files = sorted(file for file in Path(folder).rglob("*") if file.suffix.lower() in KINDS)
    failed = 0
    with runtime.load(bundle) as model, Path(out).open("w", newline="", encoding="utf-8") as stream:
        table = csv.writer(stream)
        table.writerow(("path", "label", "probability", "error"))
        rest = iter(files)
        while some := tuple(islice(rest, model.manifest.batch.max)):
            for file, best, error in named(model, some):
                failed += bool(error)
                table.writerow((file.relative_to(folder), *best, error))
    print(f"{len(files)} pictures, {failed} of them not read: {out}")
    return int(failed > 0)


def named(model: runtime.Session, files: tuple[Path, ...]) -> Iterator[tuple[Path, tuple[object, object], str]]:
    """Name a batch of pictures; where one of them cannot be read, one by one, so that the others are."""
    try:
        for file, predictions in zip(files, model.classify(files, k=1), strict=True):
            yield file, (predictions[0].label, round(predictions[0].probability, 4)), ""
    except runtime.InputError as error:
        if len(files) == 1:
            yield files[0], ("", ""), str(error)
            return
        for file in files:
            yield from named(model, (file,))


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
