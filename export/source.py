"""Where a model comes from: its network, its weights, and what is known of both before torch is imported."""

import hashlib
import importlib.util
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engineworks.export.recipe import Recipe
from engineworks.models.errors import WeightsError
from engineworks.models.registry import Network, Published, find
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Weights

if TYPE_CHECKING:
    from torch import nn

OnDownload = Callable[[int, int | None], None]
SEED = 0


@dataclass(frozen=True)
class Source:
    """A network with its weights, not yet built.

    ``file`` is the checkpoint, None where a seed makes the weights; ``preprocessing`` is as a manifest has it.
    """

    network: Network
    weights: Weights
    file: Path | None
    preprocessing: Mapping[str, Any]

    @property
    def identity(self) -> str:
        """What the weights are, for the cache's key: the digest of their file, or the seed."""
        return self.weights.sha256 or self.weights.detail

    def build(self) -> "nn.Module":
        """Build the module: float32, on the CPU, in eval mode.

        Raises:
            WeightsError: the checkpoint does not fit, or holds something else than tensors.
        """
        from engineworks.models.weights import build_network, read_checkpoint

        return build_network(self.network, read_checkpoint(self.file) if self.file else None, seed=SEED)


def resolve(recipe: Recipe, downloads: Path, on_download: OnDownload | None = None) -> Source:
    """Find the network and its weights; ``imagenet`` weights are downloaded where they are not yet kept.

    Raises:
        UnknownModelError: no network has that name.
        WeightsError: no such file, or nothing was published for this network.
        DownloadError: the published file cannot be had, or is not what was published.
    """
    network = find(recipe.model)
    if recipe.weights == "imagenet":
        return _published(network, downloads, on_download)
    if recipe.weights is not None:
        return _from_file(network, Path(recipe.weights))
    if network.shipped_path is not None:
        digest = _digest(network.shipped_path)
        weights = Weights("shipped", network.shipped_path.name, True, digest, "Apache-2.0")
        return _source(network, weights, network.shipped_path)
    return _source(network, Weights("seed", f"seed {SEED}", False, None, None), None)


def _published(network: Network, downloads: Path, on_download: OnDownload | None) -> Source:
    from engineworks.models.download import fetch

    published = network.published
    if published is None:
        raise WeightsError(f"--weights imagenet: none were published for {network.name}. Pass --weights FILE.")
    file = fetch(published, downloads, on_progress=on_download)
    return _as_published(network, published, file, _digest(file))


def _as_published(network: Network, published: Published, file: Path, digest: str) -> Source:
    weights = Weights("published", published.url, True, digest, published.licence)
    return Source(network, weights, file, published.preprocessing or network.preprocessing)


def _from_file(network: Network, file: Path) -> Source:
    if not file.is_file():
        raise WeightsError(f"--weights {file}: there is no such file. Pass a .safetensors or .pth file, or imagenet.")
    digest, published = _digest(file), network.published
    if published is not None and digest.startswith(published.sha256):
        return _as_published(network, published, file, digest)
    return _source(network, Weights("file", file.name, True, digest, None), file)


def _source(network: Network, weights: Weights, file: Path | None) -> Source:
    return Source(network, weights, file, network.preprocessing)


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def check_torch() -> None:
    """Refuse to begin where the export extra is missing.

    Raises:
        ExportError: torch or onnx is not installed; the message has the line that brings them.
    """
    for name in ("torch", "onnx", "onnxscript", "safetensors"):
        if importlib.util.find_spec(name) is None:
            raise ExportError(f'{name} is not installed, and exporting needs it. pip install "engineworks[export]"')
