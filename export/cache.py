"""Bundles that were made before: found again by what went into them, never by name or date.

The key covers the recipe, the digest of the weights, every line of our own code, and the version of every tool that
has a say. Finding a bundle imports no torch.
"""

import contextlib
import errno
import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from functools import cache
from importlib import metadata
from pathlib import Path

from engineworks.export.recipe import Recipe
from engineworks.runtime.bundle import Bundle, open_bundle
from engineworks.runtime.errors import BundleError, ExportError
from engineworks.runtime.files import new_folder

_TOOLS = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxruntime-gpu", "onnxruntime", "numpy", "safetensors", "pillow")
_SIMPLIFIERS = ("onnxsim", "onnxslim")
_COMPILERS = ("tensorrt", "tensorrt-rtx-cu13", "tensorrt_rtx_cu13")
_LIMIT = 8 << 30  # bytes; ENGINEWORKS_CACHE_BYTES sets another


def cache_folder() -> Path:
    """Return where bundles and downloads are kept: ENGINEWORKS_CACHE, else the user's cache folder."""
    asked = os.environ.get("ENGINEWORKS_CACHE")
    if asked:
        return Path(asked)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "engineworks"
    except RuntimeError as error:  # no HOME, and a user without an entry in passwd: a container's usual state
        raise ExportError("this user has no home folder for the cache. Set ENGINEWORKS_CACHE to one.") from error


def versions() -> dict[str, str]:
    """Return the version of every installed tool that has a say in a bundle."""
    found = {"engineworks": _version("engineworks") or "unknown"}
    for name in (*_TOOLS, *_SIMPLIFIERS, *_COMPILERS):
        version = _version(name)
        if version:
            found[name.replace("_", "-")] = version
    return found


def key_of(recipe: Recipe, weights: str, compiler: str) -> str:
    """Return the key of an export: 64 hex digits.

    Args:
        recipe: what was asked for.
        weights: the digest of the weights file, or how they are made.
        compiler: the compiler that is going to run, and for what GPU.
    """
    content = {
        "recipe": recipe.to_json(),
        "weights": weights,
        "compiler": compiler,
        "tools": versions(),
        "code": _code(),
        "created": os.environ.get("SOURCE_DATE_EPOCH"),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def fetch(key: str, out: Path, *, force: bool) -> Bundle | None:
    """Copy the bundle of that key to ``out``, every digest checked; None where there is none or it is damaged.

    Raises:
        OSError: ``out`` cannot be written.
    """
    kept = _folder(key)
    try:
        bundle = open_bundle(kept)
        files = {name: bundle.read(name) for name in bundle.manifest.files}
        text = (kept / "manifest.json").read_bytes()
    except (BundleError, OSError):
        shutil.rmtree(kept, ignore_errors=True)
        return None
    with new_folder(out, replace=force) as folder:
        for name, data in files.items():
            folder.write(name, data)
        folder.write("manifest.json", text)
    with contextlib.suppress(OSError):  # a cache that is read-only, or just trimmed by another export
        os.utime(kept)
    return Bundle(out, bundle.manifest)


def keep(key: str, bundle: Bundle) -> None:
    """Keep a copy of a bundle under its key, and drop the least used ones beyond the limit.

    Raises:
        OSError: the cache cannot be written; the bundle itself is not touched.
    """
    kept = _folder(key)
    kept.parent.mkdir(parents=True, exist_ok=True)
    with new_folder(kept, replace=True) as folder:
        for name in (*bundle.manifest.files, "manifest.json"):
            folder.write(name, (bundle.path / name).read_bytes())
    _trim(kept.parent, _limit(), spare=kept)


def _folder(key: str) -> Path:
    return cache_folder() / "bundles" / key


def _limit() -> int:
    text = os.environ.get("ENGINEWORKS_CACHE_BYTES") or str(_LIMIT)
    if not (text.isascii() and text.isdigit()):
        raise OSError(errno.EINVAL, f"ENGINEWORKS_CACHE_BYTES: expected a number of bytes, got {text!r}")
    return int(text)


def _trim(folder: Path, limit: int, spare: Path) -> None:
    kept = sorted(
        (entry for entry in folder.iterdir() if entry.is_dir() and entry.name[0] != "."),
        key=lambda e: e.stat().st_mtime,
        reverse=True,
    )
    total = 0
    for entry in kept:
        total += sum(file.stat().st_size for file in entry.rglob("*") if file.is_file())
        if total > limit and entry != spare:
            shutil.rmtree(entry, ignore_errors=True)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


@cache
def _code() -> str:
    """Return the digest of our own code and data, so that a change of either misses the cache."""
    folders = [Path(__file__).parent.parent / name for name in ("calibration", "export", "models", "runtime")]
    digest = hashlib.sha256()
    for file in _files(folders):
        digest.update(f"{file.parent.name}/{file.name}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()


def _files(folders: Iterable[Path]) -> list[Path]:
    kinds = {".py", ".safetensors", ".txt", ".npz", ".jpg"}
    return sorted(file for folder in folders for file in folder.iterdir() if file.suffix in kinds)
