"""Where a model comes from: what is known of it before it is built, and how it is built.

The networks of ``engineworks.models`` are known before torch is imported; what a zoo, a factory or a file holds is
known when it has been read.
"""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.export.inputs import InputSpec
from engineworks.export.original import Original
from engineworks.export.recipe import Recipe
from engineworks.models.errors import WeightsError
from engineworks.models.registry import Network, Published, find
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Scores, Weights

if TYPE_CHECKING:
    from torch import nn

OnDownload = Callable[[int, int | None], None]
SEED = 0
SEEDED = Weights("seed", f"seed {SEED}", False, None, None)
INPUT = "input"


@dataclass(frozen=True)
class Source:
    """A model, not yet built.

    Attributes:
        model: its name as it may be shown, its family, and its paper or where it was found.
        weights: where they come from.
        preprocessing: how a picture becomes its input, as a manifest has it; None where that is not known.
        labels: the classes' names, by index.
        scores: how outputs rank.
        identity: all that was read to make it, as one word, for the cache's key; None where that cannot be told, as
            for code of the user's own.
        open: builds it.
        said: what a user should know of it.
    """

    model: tuple[str, str, str]
    weights: Weights
    preprocessing: Mapping[str, Any] | None
    labels: tuple[str, ...]
    scores: Scores
    identity: str | None
    open: Callable[[], Original]
    said: tuple[str, ...] = ()


def resolve(recipe: Recipe, downloads: Path, on_download: OnDownload | None = None) -> Source:
    """Find the model and its weights; ``imagenet`` weights are downloaded where they are not yet kept.

    Raises:
        ExportError: a file, a factory or a package that is not there or fails, or that does not fit the recipe.
        UnknownModelError: no network has that name.
        WeightsError: no such file, or nothing was published for this network.
        DownloadError: the published file cannot be had, or is not what was published.
    """
    check_installed(recipe)
    kind = recipe.spec.kind
    if kind == "registry":
        source = _registered(recipe, downloads, on_download)
    elif kind in {"timm", "torchvision"}:
        from engineworks.export.zoo import zoo_source

        source = zoo_source(recipe)
    elif kind == "python":
        from engineworks.export.factory import factory_source

        source = factory_source(recipe)
    elif kind == "onnx":
        from engineworks.export.onnx_file import onnx_source

        source = onnx_source(recipe)
    else:
        from engineworks.export.program_file import program_source

        source = program_source(recipe)
    return _with_files(source, recipe)


def _with_files(source: Source, recipe: Recipe) -> Source:
    """Read what the recipe names beside the model, and make it part of the identity."""
    identity = source.identity
    for flag in ("labels", "samples"):
        path = getattr(recipe, flag)
        if path is not None:
            if not Path(path).is_file():
                raise ExportError(f"--{flag} {path}: there is no such file.")
            identity = identity and f"{identity}, {flag} {digest_of(Path(path))}"
    labels = read_labels(Path(recipe.labels)) if recipe.labels else source.labels
    return replace(source, identity=identity, labels=labels)


def with_calibration(source: Source, recipe: Recipe) -> Source:
    """Make the calibration images, and what a budget is judged on, part of a source's identity.

    Code of the user's own has none.

    Raises:
        ExportError: there is no such data, or too little of it.
    """
    from engineworks.calibration.images import SYNTHETIC, open_images
    from engineworks.export.judge import data_digest
    from engineworks.runtime.errors import InputError
    from engineworks.runtime.manifest import Tensor
    from engineworks.runtime.preprocessing import Preprocessing

    assert recipe.calib_data is not None
    path = Path(recipe.calib_data)
    word: str | None = SYNTHETIC
    if path.suffix in {".npz", ".npy"} and path.is_file():
        word = digest_of(path)
    elif path.is_dir() or path.suffix == ".txt":
        anything = Preprocessing("L", 8, "bilinear", (8, 8), 0, (0.0,), (1.0,))  # files are hashed as they are
        try:
            tensor = Tensor(INPUT, "float32", ("batch", 1, 8, 8))
            word = open_images(path, [tensor], anything, count=recipe.calib_images).sha256
        except InputError as error:
            raise ExportError(str(error)) from error
    elif recipe.calib_data != SYNTHETIC:
        word = None
    if word and recipe.calib_cache is not None and Path(recipe.calib_cache).is_file():
        word += f", cache {digest_of(Path(recipe.calib_cache))}"
    if word and recipe.data is not None:
        word += f", data {data_digest(recipe.data)}"
    return replace(source, identity=source.identity and word and f"{source.identity}, calibration {word}")


def read_labels(file: Path) -> tuple[str, ...]:
    """Read class names, one a line, in the order of the outputs.

    Raises:
        ExportError: not UTF-8 text, or an empty line between others.
    """
    try:
        lines = file.read_text("utf-8").rstrip().splitlines()
    except ValueError as error:
        raise ExportError(f"--labels {file.name}: expected UTF-8 text, one name a line.") from error
    empty = [number for number, line in enumerate(lines, 1) if not line.strip()]
    if empty or not lines:
        raise ExportError(
            f"--labels {file.name}: expected a name in every line; line {empty[0] if empty else 1} is empty."
        )
    return tuple(line.strip() for line in lines)


def _registered(recipe: Recipe, downloads: Path, on_download: OnDownload | None) -> Source:
    """Take a network of ours, with the weights asked for."""
    network = _adapted(find(recipe.model), recipe)
    weights, file, preprocessing = _weights(network, recipe, downloads, on_download)
    usual = dict(network.arguments) == {}
    return Source(
        model=(network.name, network.family, network.paper),
        weights=weights,
        preprocessing=adapted(preprocessing, recipe, network.input_shape),
        labels=network.labels if usual else (),
        scores=network.scores,
        identity=weights.sha256 or weights.detail,
        open=lambda: _build(network, file),
    )


def _adapted(network: Network, recipe: Recipe) -> Network:
    """Give a network the shape and the arguments asked for."""
    if not recipe.shapes:
        return replace(network, arguments=recipe.model_args)
    given = recipe.shapes[0]
    if len(recipe.shapes) > 1 or given.name not in {"", INPUT} or given.dtype != "float32" or len(given.shape) != 3:
        raise ExportError(f"--shape: {network.name} takes one float32 picture, such as 3x224x224; got {given}.")
    if given.shape[0] != network.input_shape[0]:
        raise ExportError(f"--shape: {network.name} takes {network.input_shape[0]} channels, got {given.shape[0]}.")
    return replace(network, arguments=recipe.model_args, input_shape=given.shape)


def _build(network: Network, file: Path | None) -> Original:
    from engineworks.export.original import of_module
    from engineworks.models.weights import build_network, read_checkpoint

    try:
        module: nn.Module = build_network(network, read_checkpoint(file) if file else None, seed=SEED)
    except TypeError as error:
        if not network.arguments:
            raise
        given = ", ".join(name for name, _ in network.arguments)
        raise ExportError(f"--model-arg {given}: {network.name} does not take that ({error}).") from error
    except RuntimeError as error:  # a picture too small for the poolings
        raise ExportError(f"--shape: {network.name} does not run on {network.input_shape} ({error}).") from error
    return of_module(module, (InputSpec(INPUT, network.input_shape),))


def adapted(preprocessing: Mapping[str, Any], recipe: Recipe, shape: tuple[int, ...]) -> dict[str, Any]:
    """Replace what the recipe replaces; with another size of input, the picture's shorter side is brought to that."""
    content = dict(preprocessing)
    channels = 3 if content["mode"] == "RGB" else 1
    for name in ("mean", "std"):
        values = getattr(recipe, name)
        if values is not None:
            content[name] = list(values if len(values) == channels else values * channels)
            if len(content[name]) != channels:
                raise ExportError(f"--{name}: the network takes {channels} channels, got {len(values)} numbers.")
    if recipe.shapes:
        height, width = shape[-2:]
        content |= {"pad": 0, "crop": [height, width], "resize": height if height == width else [height, width]}
    if recipe.resize is not None:
        content["resize"] = list(recipe.resize) if isinstance(recipe.resize, tuple) else recipe.resize
    if recipe.interpolation is not None:
        content["interpolation"] = recipe.interpolation
    return content | ({"in_graph": True} if recipe.input == "uint8" else {})


def own_preprocessing(recipe: Recipe, inputs: tuple[InputSpec, ...]) -> dict[str, Any] | None:
    """Return the preprocessing that the flags make for a model of the user's own; None where they do not tell.

    Raises:
        ExportError: ``--mean`` for what is no single picture (channels, height, width).
    """
    if recipe.mean is None:
        return None
    if (
        len(inputs) != 1
        or len(inputs[0].shape) != 3
        or inputs[0].shape[0] not in {1, 3}
        or inputs[0].dtype != "float32"
    ):
        raise ExportError(
            "--mean: expected one float32 picture of 1 or 3 channels, such as --shape 3x224x224; got "
            f"{', '.join(map(str, inputs))}."
        )
    channels, height, width = inputs[0].shape
    usual = {"mode": "RGB" if channels == 3 else "L", "interpolation": "bilinear", "pad": 0, "crop": [height, width]}
    usual |= {"resize": height if height == width else [height, width]}
    return adapted(usual, recipe, inputs[0].shape)


Found = tuple[Weights, Path | None, Mapping[str, Any]]


def _weights(network: Network, recipe: Recipe, downloads: Path, on_download: OnDownload | None) -> Found:
    """Find the weights asked for, their file, and the preprocessing that goes with them."""
    if recipe.weights == "imagenet":
        return _published(network, downloads, on_download)
    if recipe.weights is not None:
        return _from_file(network, Path(recipe.weights))
    if network.shipped_path is not None:
        digest = digest_of(network.shipped_path)
        weights = Weights("shipped", network.shipped_path.name, True, digest, "Apache-2.0")
        return weights, network.shipped_path, network.preprocessing
    return SEEDED, None, network.preprocessing


def _published(network: Network, downloads: Path, on_download: OnDownload | None) -> Found:
    from engineworks.models.download import fetch

    published = network.published
    if published is None:
        raise WeightsError(f"--weights imagenet: none were published for {network.name}. Pass --weights FILE.")
    file = fetch(published, downloads, on_progress=on_download)
    return _as_published(network, published, file, digest_of(file))


def _as_published(network: Network, published: Published, file: Path, digest: str) -> Found:
    weights = Weights("published", published.url, True, digest, published.licence)
    return weights, file, published.preprocessing or network.preprocessing


def _from_file(network: Network, file: Path) -> Found:
    weights = file_weights(file)
    assert weights.sha256 is not None
    if network.published is not None and weights.sha256.startswith(network.published.sha256):
        return _as_published(network, network.published, file, weights.sha256)
    return weights, file, network.preprocessing


def file_weights(file: Path) -> Weights:
    """Describe a checkpoint by its name and digest.

    Raises:
        WeightsError: there is none.
    """
    if not file.is_file():
        raise WeightsError(f"--weights {file}: there is no such file. Pass a .safetensors or .pth file, or imagenet.")
    return Weights("file", file.name, True, digest_of(file), None)


def digest_of(file: Path) -> str:
    """Return a file's sha256 in hex."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_installed(recipe: Recipe) -> None:
    """Refuse to begin where an extra is missing.

    Raises:
        ExportError: a package is not installed; the message has the line that brings it.
    """
    kind = recipe.spec.kind
    zoo = (kind,) if kind in {"timm", "torchvision"} else ()
    for extra, names in (("export", ("torch", "onnx", "onnxscript", "safetensors")), ("zoo", zoo)):
        for name in names:
            if importlib.util.find_spec(name) is None:
                raise ExportError(
                    f'{name} is not installed, and exporting needs it. pip install "engineworks[{extra}]"'
                )
