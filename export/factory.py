"""Networks of the user's own: ``file.py:factory`` and ``package.module:factory``.

Python code is run, the user's own, as the user asked. What it prints goes to stderr, its exceptions come back as one
line, and its result is never cached: what a factory reads cannot be known.
"""

import contextlib
import hashlib
import importlib
import importlib.util
import sys
from collections.abc import Iterator
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import TYPE_CHECKING, Any

from engineworks.export.inputs import InputSpec
from engineworks.export.interrupts import import_tools
from engineworks.export.original import Original, of_module
from engineworks.export.recipe import Recipe
from engineworks.export.source import SEED, Source, file_weights, own_preprocessing
from engineworks.runtime.errors import EngineworksError, ExportError
from engineworks.runtime.manifest import Weights

if TYPE_CHECKING:
    from torch import nn

_MOST_OFFERED = 10


def factory_source(recipe: Recipe) -> Source:
    """Build the network that a factory of the user's returns.

    Raises:
        ExportError: no shape given, no such file, module or factory, an exception in it, or a result that is no
            ``torch.nn.Module`` of float32 weights.
        WeightsError: ``--weights`` that do not fit.
    """
    spec = recipe.spec
    if not recipe.shapes:
        raise ExportError(f"{spec.shown}: which input does it take? Add --shape, such as --shape 3x224x224.")
    weights = Weights("factory", spec.shown, True, None, None)
    if recipe.weights is not None:
        weights = file_weights(Path(recipe.weights))
    import_tools()
    module = build(recipe)
    inputs = inputs_of(module, recipe)
    return Source(
        model=(spec.name, "own", f"the user's own: {spec.shown}"),
        weights=weights,
        preprocessing=own_preprocessing(recipe, inputs),
        labels=(),
        scores="logits",
        identity=None,
        open=lambda: _opened(module, inputs, recipe),
        said=(f"ran {spec.shown}; not cached, for what it reads cannot be known",),
    )


def _opened(module: "nn.Module", inputs: tuple[InputSpec, ...], recipe: Recipe) -> Original:
    from engineworks.models.weights import load_state, read_checkpoint

    if recipe.weights is not None:
        load_state(module, read_checkpoint(Path(recipe.weights)))
        module.requires_grad_(False)
    return of_module(module, inputs)


def inputs_of(module: "nn.Module", recipe: Recipe) -> tuple[InputSpec, ...]:
    """Name the inputs after ``forward``'s parameters."""
    from engineworks.export.signature import named_inputs

    return named_inputs(module, recipe.shapes)


def build(recipe: Recipe) -> "nn.Module":
    """Call the factory, its random numbers seeded, and make the result ready: eval mode, CPU, no gradients."""
    import torch

    factory = find_factory(recipe)
    shown, arguments = recipe.spec.shown, dict(recipe.model_args)
    if isinstance(factory, torch.nn.Module):
        if arguments:
            raise ExportError(f"--model-arg: {shown} is a module already, and takes no arguments.")
        return ready(factory, shown)
    if not callable(factory):
        raise ExportError(f"{shown}: expected a function or class that makes a torch.nn.Module, got {_kind(factory)}.")
    with users_code(shown), torch.random.fork_rng(devices=[]):
        torch.manual_seed(SEED)
        built = factory(**arguments)
    return ready(built, shown)


def ready(module: Any, shown: str) -> "nn.Module":
    """Check what a factory returned and put it into eval mode, on the CPU, without gradients."""
    import torch

    if not isinstance(module, torch.nn.Module):
        raise ExportError(f"{shown}: expected a torch.nn.Module, got {_kind(module)}.")
    if isinstance(module, torch.jit.ScriptModule) or hasattr(module, "_orig_mod"):
        raise ExportError(f"{shown}: is compiled (torch.jit or torch.compile). Return the module that it was made of.")
    _check_tensors(module, shown)
    with users_code(shown):
        module.cpu().eval().requires_grad_(False)
    training = [name or "the module itself" for name, child in module.named_modules() if child.training]
    if training:
        raise ExportError(f"{shown}: {training[0]} stays in training mode after .eval(); such a graph is not exported.")
    return module


def _check_tensors(module: "nn.Module", shown: str) -> None:
    import torch
    from torch.nn.parameter import is_lazy

    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        if is_lazy(tensor):
            raise ExportError(f"{shown}: {name} has no size yet (a lazy layer). Run the network once in the factory.")
        if tensor.is_meta:
            raise ExportError(f"{shown}: {name} has no values (device meta). Build the network on the CPU.")
        if tensor.is_complex() or (tensor.is_floating_point() and tensor.dtype != torch.float32):
            raise ExportError(f"{shown}: expected float32 weights, {name} is {tensor.dtype}. Return it with .float().")


def find_factory(recipe: Recipe) -> Any:
    """Import the file or module, and take the factory out of it."""
    spec = recipe.spec
    module = _from_file(Path(spec.where), spec.shown) if spec.where.endswith(".py") else _from_name(spec.where)
    found: Any = module
    for name in spec.factory.split("."):
        if not hasattr(found, name):
            near = [key for key, value in vars(module).items() if _offers(key, value, module)]
            offers = ", ".join(near[:_MOST_OFFERED]) + (", …" if len(near) > _MOST_OFFERED else "")
            raise ExportError(f"{spec.shown}: there is no {name!r} in it. It offers: {offers or 'nothing callable'}.")
        found = getattr(found, name)
    return found


def _offers(name: str, value: Any, module: ModuleType) -> bool:
    return not name.startswith("_") and callable(value) and getattr(value, "__module__", "") == module.__name__


class _Fresh(SourceFileLoader):
    """Compiles the file every time: Python's own way leaves a __pycache__, and may take an old one for a new file."""

    def get_code(self, fullname: str) -> CodeType:
        code: CodeType = self.source_to_code(self.get_data(self.path), self.path)
        return code


def _from_file(file: Path, shown: str) -> ModuleType:
    if not file.is_file():
        raise ExportError(f"{file}: there is no such file.")
    place = hashlib.sha256(str(file.resolve()).encode()).hexdigest()[:16]
    name = f"engineworks_own_{place}"  # never the file's own: a random.py must not stand in for Python's
    spec = importlib.util.spec_from_file_location(name, file, loader=_Fresh(name, str(file)))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and others look their module up
    try:
        with users_code(shown, missing=f"If it lies beside {file.name}, set PYTHONPATH to their folder."):
            spec.loader.exec_module(module)
    except BaseException:
        sys.modules.pop(name, None)
        raise
    return module


def _from_name(name: str) -> ModuleType:
    with users_code(name, missing="Install it, or set PYTHONPATH to its folder."):
        return importlib.import_module(name)


@contextlib.contextmanager
def users_code(shown: str, missing: str = "") -> Iterator[None]:
    """While the user's own code runs: its prints go to stderr, and what it raises becomes one line.

    Raises:
        ExportError: for every exception but ours and KeyboardInterrupt; ``missing`` is the mend for an absent module.
    """
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    except (EngineworksError, MemoryError):
        raise
    except ModuleNotFoundError as error:
        raise ExportError(f"{shown}: {error}. {missing}".strip()) from error
    except (Exception, SystemExit, GeneratorExit) as error:
        raise ExportError(f"{shown} raises {told(error)}") from error


def told(error: BaseException) -> str:
    """Return an exception's name and its first line."""
    words = (str(error).strip().splitlines() or [""])[0][:200]
    return f"{type(error).__name__}: {words}" if words else type(error).__name__


def _kind(value: Any) -> str:
    return "a class" if isinstance(value, type) else f"a {type(value).__name__}"
