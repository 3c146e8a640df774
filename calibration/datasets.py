"""Calibration images from a data set that the user's own code makes, whatever its library, and made-up ones.

Nothing of those libraries is imported: samples are known by what they look like.
"""

import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np

from engineworks.calibration.source import Array, Images, Item, OnSkip, Row, array_content, check_row, choose, warn_of
from engineworks.runtime.errors import InputError
from engineworks.runtime.manifest import Tensor
from engineworks.runtime.preprocessing import Picture, Preprocessing, preprocess

_IMAGE_KEYS = ("image", "img", "pixel_values")
_LABEL_KEYS = ("label", "labels", "target")
_SIDE = 256  # pixels of a made-up picture


def open_dataset(
    factory: str,
    inputs: Sequence[Tensor],
    recipe: Preprocessing | None,
    count: int,
    *,
    seed: int = 0,
    on_skip: OnSkip = warn_of,
) -> Images:
    """Take images from ``module:factory`` or ``file.py:factory``; this runs that code.

    Args:
        factory: a function without arguments. It returns a data set with ``len`` and an index, of which ``count`` are
            chosen, the same ones every time; or an iterable, whose first ``count`` are taken.
        inputs: the network's inputs.
        recipe: how pictures become the input; None if the samples are inputs already.
        count: how many images.
        seed: of the choice.
        on_skip: told of each sample that cannot be used.

    A sample is an image; or a pair (image, label); or a dict with ``image``, ``img`` or ``pixel_values``, and perhaps
    ``label``; or a dict with all inputs by name. An image is a Pillow image, a path, the bytes of a file, uint8 pixels
    (H, W), (H, W, 3) or (3, H, W): these are prepared as the recipe says; or an array of the input's dtype and shape,
    which is taken as it is. Tensors count as arrays. Arrays may have a batch axis in front, as a data loader's have.

    Raises:
        InputError: there is no such factory, it fails, or it returns something else.
    """
    make = _find(factory)
    dataset = _called(make, factory)
    length, name = _length(dataset), factory.rpartition("/")[2]
    if length is None:
        again = make if iter(cast("Iterable[Any]", dataset)) is dataset else None
        taken = sum(1 for _ in islice(_samples(_called(make, factory) if again else dataset, inputs), count))
        words = f"the first {taken} of {name}"
        return Images(words, taken, lambda: _stream(dataset, again, name, inputs, recipe, taken), on_skip)
    chosen = choose([str(index) for index in range(length)], [""] * length, count, seed)
    words = f"{len(chosen)} of {length} of {name}"
    return Images(words, len(chosen), lambda: _indexed(dataset, chosen, name, inputs, recipe), on_skip)


def _find(factory: str) -> Callable[[], Any]:
    module, _, function = factory.rpartition(":")
    try:
        if module.endswith(".py"):
            spec = importlib.util.spec_from_file_location("calibration_data_file", module)
            if spec is None or spec.loader is None:
                raise ImportError(f"{module} is no Python file")
            loaded = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
        else:
            loaded = importlib.import_module(module)
        found: Callable[[], Any] = getattr(loaded, function)
    except Exception as error:  # the user's code may raise anything
        raise InputError(
            f"--calib-data {factory}: expected module:factory or file.py:factory, got {type(error).__name__}: {error}."
        ) from error
    return found


def _called(make: Callable[[], Any], factory: str) -> Any:
    try:
        dataset = make()
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"--calib-data {factory}: the factory raised {type(error).__name__}: {error}.") from error
    if not (hasattr(dataset, "__iter__") or hasattr(dataset, "__getitem__")):
        raise InputError(
            f"--calib-data {factory}: expected a data set or an iterable, got {type(dataset).__name__}. Return one."
        )
    return dataset


def _length(dataset: Any) -> int | None:
    """Return how many samples can be had by index; None for what can only be iterated, as a loader of batches."""
    indexed = hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__") and not isinstance(dataset, Mapping)
    return len(dataset) if indexed else None


def _indexed(
    dataset: Any, chosen: Sequence[int], name: str, inputs: Sequence[Tensor], recipe: Preprocessing | None
) -> Iterator[Item]:
    for index in chosen:
        where = f"{name}[{index}]"
        try:
            rows = list(_rows(dataset[index], inputs))
        except Exception as error:  # the user's code may raise anything, on a damaged file among it
            yield _broken(where, f"{type(error).__name__}: {error}")
            continue
        for image, label in rows:
            yield _item(where, image, label, inputs, recipe)


def _broken(name: str, reason: str) -> Item:
    def load() -> Row:
        raise InputError(f"{name}: {reason}")

    return Item(name, None, load, lambda: b"")


def _stream(
    dataset: Any,
    again: Callable[[], Any] | None,
    name: str,
    inputs: Sequence[Tensor],
    recipe: Preprocessing | None,
    count: int,
) -> Iterator[Item]:
    """Read from the beginning: what can be iterated only once is made anew."""
    samples = _samples(again() if again else dataset, inputs)
    for number, (image, label) in enumerate(islice(samples, count)):
        yield _item(f"{name}[{number}]", image, label, inputs, recipe)


def _samples(dataset: Any, inputs: Sequence[Tensor]) -> Iterator[tuple[Any, int | None]]:
    try:
        for sample in dataset:
            yield from _rows(sample, inputs)
    except InputError:
        raise
    except Exception as error:  # the user's code may raise anything
        raise InputError(f"calibration: the data set raised {type(error).__name__}: {error}.") from error


def _rows(sample: Any, inputs: Sequence[Tensor]) -> Iterator[tuple[Any, int | None]]:
    """Take a sample apart into images with labels; a batch gives several."""
    image, label = _parts(sample, inputs)
    image, labels = _array(image), _array(label)
    wanted = len(inputs[0].shape)
    if isinstance(image, dict) or not isinstance(image, np.ndarray) or image.ndim != wanted or wanted < 2:
        yield image, _integer(labels)
        return
    for number, row in enumerate(image):
        one = labels[number] if isinstance(labels, np.ndarray) and labels.ndim == 1 else labels
        yield row, _integer(one)


def _parts(sample: Any, inputs: Sequence[Tensor]) -> tuple[Any, Any]:
    if isinstance(sample, Mapping):
        label = next((sample[key] for key in _LABEL_KEYS if key in sample), None)
        if all(tensor.name in sample for tensor in inputs) and (len(inputs) > 1 or inputs[0].name not in _IMAGE_KEYS):
            ready = {tensor.name: _array(sample[tensor.name]) for tensor in inputs}
            return (ready if len(inputs) > 1 else ready[inputs[0].name]), label
        image = next((sample[key] for key in _IMAGE_KEYS if key in sample), None)
        if image is None:
            raise InputError(
                f"calibration: expected a sample with {', '.join(_IMAGE_KEYS)} or all inputs, got the keys "
                f"{', '.join(map(str, sample))}."
            )
        return image, label
    if isinstance(sample, (tuple, list)) and len(sample) == 2:
        return sample[0], sample[1]
    return sample, None


def _array(value: Any) -> Any:
    """Turn what looks like a tensor into an array; leave everything else."""
    if isinstance(value, np.ndarray) or not hasattr(value, "numpy"):
        return value
    for step in ("detach", "cpu"):
        value = getattr(value, step)() if hasattr(value, step) else value
    return value.numpy()


def _integer(label: Any) -> int | None:
    try:
        return None if label is None or isinstance(label, (str, float)) else int(label)
    except (TypeError, ValueError):
        return None


def _item(name: str, image: Any, label: int | None, inputs: Sequence[Tensor], recipe: Preprocessing | None) -> Item:
    return Item(
        name, label, lambda: check_row(name, _prepared(name, image, inputs, recipe), inputs), lambda: _content(image)
    )


def _prepared(name: str, image: Any, inputs: Sequence[Tensor], recipe: Preprocessing | None) -> Row:
    """Make the network's input of an image, unless it is that already."""
    if isinstance(image, dict):
        return {key: value[None] for key, value in image.items()}
    if isinstance(image, np.ndarray) and (image.dtype != np.uint8 or inputs[0].dtype == "uint8"):
        return {inputs[0].name: image[None]}
    if recipe is None:
        raise InputError(f"{name}: expected arrays, for the network has no preprocessing; got {type(image).__name__}.")
    return {inputs[0].name: preprocess(cast("Picture", _channels_last(image)), recipe)}


def _channels_last(image: Any) -> Any:
    if (
        isinstance(image, np.ndarray)
        and image.ndim == 3
        and image.shape[0] in {1, 3}
        and image.shape[2] not in {1, 3, 4}
    ):
        return np.ascontiguousarray(image.transpose(1, 2, 0))
    return image


def _content(image: Any) -> bytes:
    if isinstance(image, dict):
        return array_content(image)
    if isinstance(image, np.ndarray):
        return array_content({"": image})
    if isinstance(image, bytes):
        return image
    if hasattr(image, "tobytes"):
        return f"{image.mode} {image.size}\n".encode() + bytes(image.tobytes())
    try:
        return Path(image).read_bytes()
    except (OSError, TypeError, ValueError):
        return b""  # it will be named when it is read


def open_synthetic(inputs: Sequence[Tensor], recipe: Preprocessing | None, count: int, *, seed: int = 0) -> Images:
    """Make images up: smooth noise that has the spectrum of photographs, or normal values where there is no recipe.

    Scales from these serve for trying out and for timing; they say nothing of accuracy, and the description says so.

    Raises:
        InputError: an input with a free axis besides the batch's, and no recipe.
    """
    free = [tensor.name for tensor in inputs if any(isinstance(axis, str) for axis in tensor.shape[1:])]
    pictures = recipe is not None and len(inputs) == 1
    if free and not pictures:
        raise InputError(f"--calib-data synthetic: input {free[0]!r} has a free axis. Give real images.")

    def make(number: int) -> Row:
        generator = np.random.default_rng([seed, number])
        if pictures:
            return {inputs[0].name: preprocess(_cloud(generator), cast("Preprocessing", recipe))}
        return {tensor.name: _normal(generator, tensor) for tensor in inputs}

    def items() -> Iterator[Item]:
        return (_made(f"synthetic[{number}]", make(number), inputs) for number in range(count))

    return Images(f"{count} synthetic images, which say nothing of accuracy", count, items)


def _made(name: str, row: Row, inputs: Sequence[Tensor]) -> Item:
    return Item(name, None, lambda: check_row(name, row, inputs), lambda: array_content(row))


def _normal(generator: np.random.Generator, tensor: Tensor) -> Array:
    shape = [int(axis) for axis in tensor.shape[1:]]
    return generator.standard_normal((1, *shape)).astype(tensor.dtype)


def _cloud(generator: np.random.Generator) -> "np.ndarray[tuple[int, ...], np.dtype[np.uint8]]":
    """Add noise of every octave, twice as strong at twice the wavelength, mostly grey: 1/f, as in photographs."""
    sides = [2**power for power in range(1, _SIDE.bit_length())]
    total = np.zeros((_SIDE, _SIDE, 3))
    for side in sides:
        grey, colour = generator.standard_normal((side, side, 1)), generator.standard_normal((side, side, 3))
        total += np.kron(grey + 0.3 * colour, np.ones((_SIDE // side, _SIDE // side, 1))) / side**0.5
    brightness, contrast = generator.uniform(80, 170), generator.uniform(20, 60)
    scaled = (total - total.mean()) * (contrast / total.std()) + brightness
    return np.asarray(scaled.clip(0, 255), np.uint8)
