"""Where calibration images come from (``--calib-data``): a folder, a list, arrays, a data set, or made up.

Pictures are read by the one preprocessing function that serves every stage. Which of more images are taken is decided
once and for all by their names; they come in sorted order.
"""

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from engineworks.calibration.arrays import open_arrays
from engineworks.calibration.datasets import open_dataset, open_synthetic
from engineworks.calibration.source import LEAST, Images, Item, OnSkip, Row, check_row, choose, warn_of
from engineworks.runtime.errors import InputError
from engineworks.runtime.manifest import Tensor
from engineworks.runtime.preprocessing import Preprocessing, preprocess

DEFAULT_COUNT = 128
SYNTHETIC = "synthetic"
SUFFIXES = (
    ".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff",
    ".ppm", ".pgm", ".pbm", ".pnm", ".jp2", ".j2k", ".avif",
)  # fmt: skip


def open_images(
    data: str | Path,
    inputs: Sequence[Tensor],
    recipe: Preprocessing | None,
    *,
    count: int = DEFAULT_COUNT,
    labels: Sequence[str] = (),
    seed: int = 0,
    on_skip: OnSkip = warn_of,
) -> Images:
    """Open a source of calibration images.

    Args:
        data: a folder of pictures, in class sub-folders or not; a ``.txt`` list, one path a line, relative to the
            list; ``.npz`` or ``.npy`` with the network's inputs as they are; ``module:factory`` or ``file.py:factory``
            (runs that code; see ``open_dataset``); or ``synthetic``.
        inputs: the network's inputs, name, dtype and shape, as a manifest has them.
        recipe: how a picture becomes the input; None for a network that takes no pictures.
        count: take so many where there are more, evenly over the classes, the same ones every time.
        labels: the names of the network's classes. A class folder that bears one gives its index; else the folders'
            own sorted order does, if there are as many as labels, or no labels are known; else images have no label.
        seed: of the choice.
        on_skip: told the name of each broken image and the reason; by default a Python warning.

    Returns:
        images that can be iterated any number of times, with length, hash and description.

    Raises:
        InputError: there is no such source, it holds fewer than 8 images, or pictures for a network that takes none.
    """
    if count < LEAST:
        raise InputError(f"--calib-images {count}: expected {LEAST} or more; fewer say too little of a range.")
    images = _open(str(data), inputs, recipe, count, labels, seed, on_skip)
    if images.count < LEAST:
        raise InputError(f"--calib-data {data}: expected {LEAST} images or more, got {images.count}.")
    return images


def _open(
    data: str,
    inputs: Sequence[Tensor],
    recipe: Preprocessing | None,
    count: int,
    labels: Sequence[str],
    seed: int,
    on_skip: OnSkip,
) -> Images:
    path = Path(data)
    if data == SYNTHETIC:
        return open_synthetic(inputs, recipe, count, seed=seed)
    if path.is_dir():
        return _folder(path, inputs, _recipe(data, inputs, recipe), count, labels, seed, on_skip)
    if path.suffix in {".npz", ".npy"} and path.is_file():
        return open_arrays(path, inputs, count, seed=seed, on_skip=on_skip)
    if path.suffix == ".txt" and path.is_file():
        return _list(path, inputs, _recipe(data, inputs, recipe), count, seed, on_skip)
    if ":" in data:
        return open_dataset(data, inputs, recipe, count, seed=seed, on_skip=on_skip)
    raise InputError(
        f"--calib-data {data}: expected an existing folder, .txt list, .npz or .npy file, module:factory, or synthetic."
    )


def _recipe(data: str, inputs: Sequence[Tensor], recipe: Preprocessing | None) -> Preprocessing:
    if recipe is None or len(inputs) != 1:
        raise InputError(f"--calib-data {data}: the network's inputs are not one picture. Give a .npz file of them.")
    return recipe


def _folder(
    root: Path,
    inputs: Sequence[Tensor],
    recipe: Preprocessing,
    count: int,
    labels: Sequence[str],
    seed: int,
    on_skip: OnSkip,
) -> Images:
    names = sorted(_pictures(root))
    if not names:
        raise InputError(f"--calib-data {root}: expected pictures ({', '.join(SUFFIXES)}), found none.")
    classes = [name.partition("/")[0] if "/" in name else "" for name in names]
    index = class_indexes(sorted(set(classes) - {""}), labels)
    chosen = choose(names, classes, count, seed)
    items = [_picture(root / names[i], names[i], index.get(classes[i]), inputs, recipe) for i in chosen]
    words = f"{len(chosen)} of {len(names)} pictures of the folder {root.resolve().name}"
    folders = len(set(classes) - {""})
    if folders:
        words += f", {folders} class folders" + ("" if index else ", none of them a known class")
    return Images(words, len(items), lambda: items, on_skip)


def _pictures(root: Path) -> Iterator[str]:
    """Yield the pictures below a folder by their relative names; class folders may be links, those below not."""
    for top in sorted(root.iterdir()):
        if top.name.startswith("."):
            continue
        if top.is_file():
            found = [top]
        else:
            walk = os.walk(top)
            found = [Path(folder, name) for folder, _, names in walk for name in names if not name.startswith(".")]
        yield from (file.relative_to(root).as_posix() for file in found if file.suffix.lower() in SUFFIXES)


def class_indexes(folders: Sequence[str], labels: Sequence[str]) -> dict[str, int]:
    """Return class folder → index of its class; empty where that cannot be known.

    Args:
        folders: the names of the class folders, sorted.
        labels: the network's classes in the order of its outputs; empty if unknown.

    A folder bears a label if the names are equal but for case and underscores. Labels that occur twice name nothing.
    """
    plain = [_plain(label) for label in labels]
    unique = {label: number for number, label in enumerate(plain) if plain.count(label) == 1}
    if folders and all(_plain(folder) in unique for folder in folders):
        return {folder: unique[_plain(folder)] for folder in folders}
    if not labels or len(folders) == len(labels):
        return {folder: number for number, folder in enumerate(folders)}
    return {}


def _plain(name: str) -> str:
    return name.casefold().replace("_", " ").strip()


def _list(
    file: Path, inputs: Sequence[Tensor], recipe: Preprocessing, count: int, seed: int, on_skip: OnSkip
) -> Images:
    try:
        lines = [line.strip() for line in file.read_text("utf-8").splitlines()]
    except (OSError, UnicodeError) as error:
        raise InputError(f"--calib-data {file}: cannot be read as a list of paths ({error}).") from error
    names = sorted(line for line in lines if line)
    chosen = choose(names, [""] * len(names), count, seed)
    items = [_picture(file.parent / names[i], names[i], None, inputs, recipe) for i in chosen]
    return Images(f"{len(chosen)} of {len(names)} pictures of the list {file.name}", len(items), lambda: items, on_skip)


def _picture(file: Path, name: str, label: int | None, inputs: Sequence[Tensor], recipe: Preprocessing) -> Item:
    def load() -> Row:
        try:
            content = file.read_bytes()
        except OSError as error:
            raise InputError(f"{name}: cannot be read ({error.strerror}).") from error
        try:
            return check_row(name, {inputs[0].name: preprocess(content, recipe)}, inputs)
        except InputError as error:
            raise InputError(f"{name}: {str(error).removeprefix(f'{name}: ').removeprefix('image bytes: ')}") from error

    return Item(name, label, load, lambda: _bytes(file))


def _bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError:
        return b""  # it will be named when it is read
