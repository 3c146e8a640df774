"""Labelled pictures on disk: one folder for each class, or a list file."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from engineworks.runtime.errors import InputError

_SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".jp2", ".avif"}


@dataclass(frozen=True)
class Dataset:
    """Pictures with the index of their class each, how the classes were told, and what was passed over."""

    pictures: tuple[tuple[Path, int], ...]
    mapping: str
    passed_over: int


def open_dataset(path: Path | str, labels: Sequence[str], classes: int) -> Dataset:
    """Find labelled pictures.

    Args:
        path: a folder with one folder for each class (named by a label or an index; failing that, in sorted order),
            or a text file of lines ``PICTURE CLASS`` (a tab, a comma or the last blank between them; paths relative
            to the file's folder; a class is a label or an index).
        labels: the names of the classes, by index; may be empty.
        classes: how many classes the network tells apart.

    Returns:
        The pictures in sorted order, or in the list's.

    Raises:
        InputError: nothing there, no picture in it, or a class that the network does not know.
    """
    source = Path(path)
    if source.is_dir():
        return _folders(source, labels, classes)
    if source.is_file():
        return _list(source, labels, classes)
    raise InputError(f"data: {source} is neither a folder nor a file. Pass class folders or a list file.")


def _folders(root: Path, labels: Sequence[str], classes: int) -> Dataset:
    folders = sorted(entry for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not folders:
        raise InputError(f"data: expected a folder for each class in {root}, found none. Pass a list file instead.")
    indices, mapping = _indices([folder.name for folder in folders], labels, classes)
    pictures, others = list[tuple[Path, int]](), 0
    for folder, index in zip(folders, indices, strict=True):
        files = sorted(file for file in folder.rglob("*") if file.is_file() and not file.name.startswith("."))
        found = [file for file in files if file.suffix.lower() in _SUFFIXES]
        others += len(files) - len(found)
        pictures += [(file, index) for file in found]
    if not pictures:
        raise InputError(f"data: no picture in the {len(folders)} folders of {root}; known: {_known()}.")
    return Dataset(tuple(pictures), mapping, others)


def _indices(names: Sequence[str], labels: Sequence[str], classes: int) -> tuple[list[int], str]:
    """Tell which class each folder is: by its label, by its number, or by its place."""
    by_label = _by_label(labels)
    known = [name for name in names if _plain(name) in by_label]
    if len(known) == len(names):
        return [by_label[_plain(name)] for name in names], "folders are named by labels"
    if all(name.isdecimal() and int(name) < classes for name in names):
        return [int(name) for name in names], "folders are named by indices"
    if known:
        unknown = next(name for name in names if name not in known)
        raise InputError(
            f"data: {len(known)} of {len(names)} folders are named by labels, but {unknown!r} is none. Rename it."
        )
    if len(names) != classes:
        raise InputError(
            f"data: {len(names)} folders, such as {names[0]!r}, are no labels, and the network has {classes} classes, "
            "so that their order tells nothing. Name them by label or index, or pass a list file."
        )
    return list(range(classes)), "folders in sorted order are classes 0, 1, 2…"


def _list(file: Path, labels: Sequence[str], classes: int) -> Dataset:
    by_label = _by_label(labels)
    pictures = list[tuple[Path, int]]()
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"data: {file} is no text ({error}). Expected lines PICTURE CLASS.") from error
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, index = _entry(line.strip(), by_label, classes, f"{file}, line {number}")
            pictures.append((file.parent / name, index))
    if not pictures:
        raise InputError(f"data: {file} is empty. Expected lines PICTURE CLASS.")
    return Dataset(tuple(pictures), f"classes as {file.name} tells them", 0)


def _entry(line: str, by_label: dict[str, int], classes: int, where: str) -> tuple[str, int]:
    """Part a line at a tab, a comma or the last blank: at the first of these behind which a class stands."""
    told = ""
    for sign in ("\t", ",", None):
        parts = line.rsplit(sign, 1)
        if len(parts) == 2:
            name, told = parts[0].strip(), parts[1].strip()
            index = by_label.get(_plain(told), int(told) if told.isdecimal() else classes)
            if index < classes:
                return name, index
    if not told:
        raise InputError(f"data: {where}: expected PICTURE CLASS, got {line!r}.")
    raise InputError(f"data: {where}: expected a label or an index below {classes}, got {told!r}. Mend the line.")


def _by_label(labels: Sequence[str]) -> dict[str, int]:
    """Tell the class of each label that only one class has (ImageNet has two cranes)."""
    plain = [_plain(label) for label in labels]
    return {label: index for index, label in enumerate(plain) if plain.count(label) == 1}


def _plain(label: str) -> str:
    return label.strip().replace("_", " ").casefold()


def _known() -> str:
    return " ".join(sorted(_SUFFIXES))
