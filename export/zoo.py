"""Networks of timm and torchvision by name, prepared as their own configurations say."""

import importlib
import math
from difflib import get_close_matches
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.export.factory import ready, users_code
from engineworks.export.inputs import InputSpec
from engineworks.export.interrupts import import_tools
from engineworks.export.original import Original, of_module
from engineworks.export.recipe import Recipe
from engineworks.export.source import INPUT, SEED, SEEDED, Source, adapted, file_weights
from engineworks.models.registry import NETWORKS
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Weights

if TYPE_CHECKING:
    from torch import nn

Found = tuple["nn.Module", dict[str, Any] | None]
_SHIMMED = "torchvision's compiled operators do not load beside this torch; networks without them work all the same"


def zoo_source(recipe: Recipe) -> Source:
    """Build a network of a zoo: untrained, with the zoo's published weights, or with a file's.

    Raises:
        ExportError: no network of that name, arguments that it does not take, or weights that cannot be had.
        WeightsError: a file that does not fit.
    """
    from engineworks.models.zoo_import import import_torchvision

    import_tools()
    import torch

    spec = recipe.spec
    version = metadata.version(spec.kind)
    try:
        shimmed = import_torchvision()[1]
    except ImportError as error:
        raise ExportError(
            f"{spec.shown}: {error}. Install a torchvision that fits torch {torch.__version__}."
        ) from error
    with users_code(spec.shown), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        module, preprocessing = (_timm if spec.kind == "timm" else _torchvision)(recipe)
    weights = _weights(recipe, version)
    shape = _shape(recipe, preprocessing)
    return Source(
        model=(spec.name, spec.kind, f"{spec.kind} {version}: {spec.where}"),
        weights=weights,
        preprocessing=None if preprocessing is None else adapted(preprocessing, recipe, shape),
        labels=NETWORKS["resnet50"].labels,
        scores="logits",
        identity=f"{spec.kind} {version}, {weights.sha256 or weights.detail}",
        open=lambda: _opened(module, shape, recipe),
        said=(_SHIMMED,) if shimmed else (),
    )


def _weights(recipe: Recipe, version: str) -> Weights:
    if recipe.weights == "imagenet":
        return Weights("published", f"{recipe.spec.kind} {version}: {recipe.spec.where}", True, None, None)
    return SEEDED if recipe.weights is None else file_weights(Path(recipe.weights))


def _opened(module: "nn.Module", shape: tuple[int, ...], recipe: Recipe) -> Original:
    from engineworks.models.initialise import initialise
    from engineworks.models.weights import load_state, read_checkpoint

    if recipe.weights is None:
        with users_code(recipe.spec.shown):
            initialise(module, (shape[0], shape[1], shape[2]), SEED)
    elif recipe.weights != "imagenet":
        load_state(module, read_checkpoint(Path(recipe.weights)))
    return of_module(ready(module, recipe.spec.shown), (InputSpec(INPUT, shape),))


def _shape(recipe: Recipe, preprocessing: dict[str, Any] | None) -> tuple[int, ...]:
    """Return the shape asked for, else the one that the zoo's configuration gives."""
    if recipe.shapes:
        given = recipe.shapes[0]
        if len(recipe.shapes) > 1 or given.name not in {"", INPUT} or given.dtype != "float32" or len(given.shape) != 3:
            raise ExportError(
                f"--shape: {recipe.spec.shown} takes one float32 picture, such as 3x224x224; got {given}."
            )
        return given.shape
    if preprocessing is None or preprocessing["crop"] is None:
        raise ExportError(f"{recipe.spec.shown}: its configuration names no input size. Add --shape 3xHEIGHTxWIDTH.")
    return (3 if preprocessing["mode"] == "RGB" else 1, *preprocessing["crop"])


def _timm(recipe: Recipe) -> Found:
    timm: Any = importlib.import_module("timm")
    name, trained = recipe.spec.where, recipe.weights == "imagenet"
    if not name.startswith("hf-hub:") and not timm.is_model(name):
        near = get_close_matches(name, timm.list_models(), n=3)
        raise ExportError(f"timm has no network {name!r}{': perhaps ' + ', '.join(near) if near else ''}.")
    module = timm.create_model(name, pretrained=trained, **dict(recipe.model_args))
    return module, _of_timm(timm.data.resolve_model_data_config(module))


def _of_timm(config: dict[str, Any]) -> dict[str, Any] | None:
    """Put timm's data configuration in our words; its letterbox and grey modes have none."""
    channels, height, width = config["input_size"]
    if config.get("crop_mode", "center") == "border" or channels not in {1, 3}:
        return None
    sides = [math.floor(side / config["crop_pct"]) for side in (height, width)]  # as timm's own transform rounds
    return {
        "mode": "RGB" if channels == 3 else "L",
        "resize": sides[0] if config.get("crop_mode", "center") == "center" and height == width else sides,
        "interpolation": config["interpolation"],
        "crop": [height, width],
        "pad": 0,
        "mean": list(config["mean"]),
        "std": list(config["std"]),
    }


def _torchvision(recipe: Recipe) -> Found:
    models: Any = importlib.import_module("torchvision.models")
    name = recipe.spec.where
    if name not in models.list_models():
        near = get_close_matches(name, models.list_models(), n=3)
        raise ExportError(f"torchvision has no network {name!r}{': perhaps ' + ', '.join(near) if near else ''}.")
    published = models.get_model_weights(name).DEFAULT
    trained = recipe.weights == "imagenet"
    arguments = dict(recipe.model_args)
    if not trained and "init_weights" in _parameters(models.get_model_builder(name)):
        arguments = {"init_weights": False} | arguments  # else torchvision warns that it takes minutes
    if "weights_backbone" in _parameters(models.get_model_builder(name)):
        arguments = {"weights_backbone": None} | arguments  # a download that nobody asked for
    module = models.get_model(name, weights=published if trained else None, **arguments)
    return module, _of_torchvision(published.transforms())


def _parameters(builder: Any) -> set[str]:
    """Name a builder's own keyword arguments, and those of the class that it hands the rest to."""
    import inspect

    names = set(inspect.signature(builder).parameters)
    makes = inspect.signature(builder).return_annotation
    return names | (set(inspect.signature(makes).parameters) if isinstance(makes, type) else set())


def _of_torchvision(preset: Any) -> dict[str, Any] | None:
    """Put a preset of torchvision in our words; presets for video and detection have none."""
    if not all(hasattr(preset, name) for name in ("mean", "std", "resize_size", "interpolation")):
        return None
    crop = getattr(preset, "crop_size", None)
    if len(preset.resize_size) != 1 or (crop is not None and len(crop) != 1):
        return None
    return {
        "mode": "RGB",
        "resize": int(preset.resize_size[0]),
        "interpolation": str(preset.interpolation.value),
        "crop": None if crop is None else [int(crop[0])] * 2,
        "pad": 0,
        "mean": list(preset.mean),
        "std": list(preset.std),
    }
