"""Checkpoints in, networks ready to run out; and random weights that behave like trained ones.

``build_network`` is the short way: it builds without torch's own initialisation, then either takes a checkpoint's
tensors or draws weights from a seed. torch is imported inside the functions.
"""

from __future__ import annotations

import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from engineworks.models.errors import WeightsError
from engineworks.models.registry import Network

if TYPE_CHECKING:
    from torch import Tensor, nn

    State = Mapping[str, Tensor]

WRAPPERS: Final = ("state_dict", "model", "model_state_dict")
PREFIXES: Final = ("module.", "_orig_mod.")
MEND: Final = "Save the tensors alone: torch.save(model.state_dict(), 'weights.pth'), or safetensors."


def read_checkpoint(path: Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint by name, running no code from it.

    Args:
        path: a ``.safetensors`` file, or a ``.pth`` or ``.pt`` written by ``torch.save``: a state dict, or a dict that
            holds one under "state_dict", "model" or "model_state_dict".

    Returns:
        Tensors on the CPU, mapped from the file where its format allows: do not overwrite it while they live. The
        prefixes that DataParallel and torch.compile put before names ("module.", "_orig_mod.") are taken off.

    Raises:
        WeightsError: the file is absent, empty, damaged or cut short, holds a pickled module, or no state dict.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: expected a checkpoint, found {'a folder' if path.is_dir() else 'no such file'}.")
    if path.stat().st_size == 0:
        raise WeightsError(f"{path}: expected a checkpoint, got an empty file. Copy or download it again.")
    if path.suffix == ".safetensors":
        return _without_prefixes(_read_safetensors(path))
    if path.suffix in {".pth", ".pt"}:
        return _without_prefixes(_unwrap(_read_torch(path), path))
    raise WeightsError(f"{path}: expected .safetensors, .pth or .pt, got {path.suffix or 'no extension'!r}. {MEND}")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except (SafetensorError, OSError, ValueError) as error:
        raise WeightsError(f"{path}: damaged safetensors file ({_line(error)}). Copy or download it again.") from error


def _read_torch(path: Path) -> object:
    """Unpickle under torch's allow-list; files older than torch 1.6 are no zip and cannot be mapped."""
    import torch

    zipped = zipfile.is_zipfile(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickle protocols; what matters is raised
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipped)
    except Exception as error:  # torch raises half a dozen kinds for a damaged file, pickle's own among them
        text = str(error)
        pickled = "Weights only load failed" in text and (zipped or _starts_as_pickle(path))
        if pickled or "TorchScript" in text:
            raise WeightsError(f"{path}: expected a state dict, got pickled objects or code. {MEND}") from error
        raise WeightsError(f"{path}: damaged or no torch file ({_line(error)}). Copy or download it again.") from error


def _starts_as_pickle(path: Path) -> bool:
    """Tell a pickle of protocol 2 or later (PEP 307: opcode PROTO, then the number) from other files."""
    with path.open("rb") as stream:
        start = stream.read(2)
    return len(start) == 2 and start[0] == 0x80 and 2 <= start[1] <= 5


def _unwrap(content: object, path: Path) -> dict[str, Tensor]:
    """Take the state dict out of what ``torch.load`` returned."""
    from torch import Tensor

    if isinstance(content, dict):
        for key in WRAPPERS:
            if isinstance(content.get(key), dict):
                content = content[key]
                break
    if isinstance(content, dict) and content and all(isinstance(value, Tensor) for value in content.values()):
        return {str(key): value for key, value in content.items()}
    raise WeightsError(f"{path}: expected a state dict (names to tensors), got {_describe(content)}. {MEND}")


def _describe(content: object) -> str:
    if not isinstance(content, dict):
        return f"a {type(content).__name__}"
    if not content:
        return "an empty dict"
    odd = next(((key, value) for key, value in content.items() if not hasattr(value, "shape")), None)
    return f"a dict whose {odd[0]!r} is a {type(odd[1]).__name__}" if odd else "a dict"


def _line(error: Exception) -> str:
    """Return an error's first line, cut to one that can be read."""
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 160 else first[:157] + "..."


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Take a wrapper's prefix off, as often as every name has it."""
    for prefix in PREFIXES * 2:
        if state and all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def load_state(module: nn.Module, state: State, *, optional: tuple[str, ...] = ()) -> None:
    """Put a checkpoint's tensors into a module, strictly, in the module's own dtypes and without copying.

    Args:
        module: any module; parameters may be on the meta device.
        state: tensors by name.
        optional: prefixes that the checkpoint may lack, or have where the module does not. Batch norm's
            ``num_batches_tracked``, which old checkpoints lack and inference never reads, may be missing anywhere.

    Raises:
        WeightsError: names or shapes do not match, or a tensor holds NaN or infinity.
    """
    expected = module.state_dict()
    _check_names(expected, state, optional)
    kept = {name: tensor for name, tensor in state.items() if name in expected}
    _check_shapes(expected, kept)
    _check_kinds(expected, kept)
    kept = {name: tensor.to(expected[name].dtype) for name, tensor in kept.items()}
    _check_finite(kept)
    module.load_state_dict(kept, strict=False, assign=True)


def _check_names(expected: State, state: State, optional: tuple[str, ...]) -> None:
    missing = [n for n in expected if n not in state and not n.startswith(optional) and "num_batches_tracked" not in n]
    unexpected = [name for name in state if name not in expected and not name.startswith(optional)]
    if missing or unexpected:
        raise WeightsError(
            f"the checkpoint does not fit: expected {len(expected)} tensors, got {len(state)}; "
            f"{_listed('missing', missing)}; {_listed('unexpected', unexpected)}. Is it another network's?"
        )


def _check_shapes(expected: State, state: State) -> None:
    wrong = [
        f"{name} expected {tuple(expected[name].shape)}, got {tuple(tensor.shape)}"
        for name, tensor in state.items()
        if tensor.shape != expected[name].shape
    ]
    if wrong:
        raise WeightsError(
            f"the checkpoint does not fit: {_listed('shapes differ', wrong)}. Trained for another number of classes?"
        )


def _check_kinds(expected: State, state: State) -> None:
    """Refuse integers and complex numbers for real ones, and tensors whose values lie elsewhere or in another form."""
    import torch

    wrong = [
        f"{name} {tensor.dtype}"
        for name, tensor in state.items()
        if (tensor.is_floating_point() != expected[name].is_floating_point() and "num_batches_tracked" not in name)
        or tensor.is_complex()
        or tensor.is_quantized
        or tensor.is_meta
        or tensor.layout != torch.strided
    ]
    if wrong:
        raise WeightsError(
            f"the checkpoint does not fit: {_listed('tensors are no plain numbers of the kind expected', wrong)}. "
            "Save it from the float32 network."
        )


def _check_finite(state: State) -> None:
    """Refuse NaN and infinity. A finite sum proves a tensor finite at the price of one read."""
    wrong = [
        name
        for name, tensor in state.items()
        if tensor.is_floating_point() and not tensor.sum().isfinite() and not tensor.isfinite().all()
    ]
    if wrong:
        raise WeightsError(
            f"the checkpoint holds NaN or infinity in {_listed('tensors', wrong)}. Take one saved before it diverged."
        )


def _listed(what: str, items: list[str]) -> str:
    """Return how many there are, and the first five."""
    shown = ", ".join(items[:5]) + (", ..." if len(items) > 5 else "")
    return f"{len(items)} {what}" + (f" ({shown})" if items else "")


def build_network(network: Network, state: State | None = None, *, seed: int = 0) -> nn.Module:
    """Build a network that is ready to run: evaluation mode, no gradients, on the CPU.

    Args:
        network: from ``engineworks.models.find``.
        state: a checkpoint's tensors, taken without a copy; None draws random weights (``initialise``).
        seed: for the random weights, and for optional parts that the checkpoint lacks.

    Raises:
        WeightsError: ``state`` does not fit.
    """
    import torch

    from engineworks.models.initialise import draw, initialise, materialise

    with torch.device("meta"):
        module = network.build()
    if state is None:
        initialise(module, network.input_shape, seed, spread=network.input_spread)
    else:
        load_state(module, state, optional=network.optional_keys)
        draw(materialise(module), torch.Generator().manual_seed(seed))
    return module.eval().requires_grad_(False)
