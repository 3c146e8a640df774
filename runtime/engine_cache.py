"""Bundles with an engine for one GPU, kept in a folder of the host that compiled it: which entry belongs to what.

An entry is a whole bundle: the same graph and proof, with the engine that was compiled here. Its name says for which
graph, compiler and GPU it is. It holds native code that nobody signed, so one that another user owns or may write is
not used. The folder may be emptied at any time.
"""

import hashlib
import os
import re
import stat
from dataclasses import replace
from pathlib import Path

from engineworks.runtime import manifest as manifests
from engineworks.runtime.bundle import MANIFEST, Bundle, open_bundle
from engineworks.runtime.cuda import Gpu
from engineworks.runtime.errors import BundleError
from engineworks.runtime.trt_runtime import MODULES, absent


def entry_name(bundle: Bundle, flavour: str, version: str, target: str) -> str:
    """Name the entry for a bundle's graph, a compiler of one version, and a GPU such as ``sm89``."""
    return f"{_stem(bundle)}.{flavour}-{version}-{target}"


def find_entry(bundle: Bundle, folder: Path, gpu: Gpu) -> Path | None:
    """Return the entry with an engine for this GPU by a compiler that is installed here; None where there is none.

    Whether that compiler's version is still the installed one shows when it is opened; the newest comes first.
    """
    if gpu.target is None:
        return None
    for flavour in MODULES:
        pattern = f"{_stem(bundle)}.{flavour}-*-{gpu.target}"
        found = [] if absent(flavour) else [entry for entry in folder.glob(pattern) if not doubt(entry)]
        if found:
            return max(found, key=_age)
    return None


def doubt(entry: Path) -> str:
    """Return why an entry is not to be trusted; empty where it is a bundle of our own user, or root's."""
    try:
        bundle = open_bundle(entry)
        places = [entry, entry / MANIFEST, *(entry / name for name in bundle.manifest.files)]
        places += {place.parent for place in places[2:]}
        states = [place.lstat() for place in places]
    except (BundleError, OSError) as error:
        return str(error)
    if any(not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)) for state in states):
        return "it holds something other than files"
    if any(state.st_uid not in {0, os.geteuid()} or state.st_mode & (stat.S_IWGRP | stat.S_IWOTH) for state in states):
        return "another user may have written it"
    return ""


def _stem(bundle: Bundle) -> str:
    """A name that is a file's, and a digest of all that an engine depends on: not of when the bundle was made."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", bundle.manifest.name)[:80].lstrip(".")
    files = {name: file for name, file in bundle.manifest.files.items() if not name.startswith("engines/")}
    content = manifests.dump(replace(bundle.manifest, created="", engines=(), notes=(), tools={}, files=files))
    return f"{name}.{hashlib.sha256(content.encode()).hexdigest()[:16]}"


def _age(entry: Path) -> float:
    return entry.stat().st_mtime
