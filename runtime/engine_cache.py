"""Bundles with an engine for one GPU, kept in a folder of the host that compiled it: which entry belongs to what.

An entry is a whole bundle: the same graph and proof, with the engine that was compiled here. Its name says for which
graph, compiler and GPU it is. It holds native code that nobody signed, so one that another user owns or may write is
not used. The folder may be emptied at any time.
"""

import hashlib
import logging
import os
import re
import shutil
import stat
import time
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from engineworks.runtime import manifest as manifests
from engineworks.runtime.bundle import MANIFEST, Bundle, open_bundle
from engineworks.runtime.cuda import Gpu
from engineworks.runtime.errors import BackendError, BundleError
from engineworks.runtime.trt_runtime import MODULES, Flavour, absent, load_module

_KEPT = 30 * 24 * 3600.0  # seconds
_log = logging.getLogger("engineworks.serve")


def entry_name(bundle: Bundle, flavour: str, version: str, target: str) -> str:
    """Name the entry for a bundle's graph, a compiler of one version, and a GPU such as ``sm89``."""
    return f"{_stem(bundle)}.{flavour}-{version}-{target}"


def find_entry(bundle: Bundle, folder: Path, gpu: Gpu) -> Path | None:
    """Return the entry with an engine for this GPU by a compiler of the version installed here; None without one."""
    if gpu.target is None:
        return None
    for flavour in MODULES:
        made = any(folder.glob(entry_name(bundle, flavour, "*", gpu.target)))  # else nothing heavy is imported
        if made and (version := _installed(flavour)):
            entry = folder / entry_name(bundle, flavour, version, gpu.target)
            if entry.is_dir() and _trusted(entry, bundle):
                with suppress(OSError):  # a folder that is read-only here
                    os.utime(entry)  # when it was last taken
                return entry
    return None


def doubt(entry: Path, bundle: Bundle) -> str:
    """Return why an entry is not to be trusted; empty where it is this bundle, and none but we and root may write it.

    Our own group may: a volume's driver may have made all in it that group's (Kubernetes, ``fsGroup``).
    """
    if problem := doubt_folder(entry.parent):
        return problem
    try:
        found = open_bundle(entry)
        places = [entry, entry / MANIFEST, *(entry / name for name in found.manifest.files)]
        places += {place.parent for place in places[2:]}
        states = [place.lstat() for place in places]
    except (BundleError, OSError) as error:
        return str(error)
    if any(not (stat.S_ISREG(state.st_mode) or stat.S_ISDIR(state.st_mode)) for state in states):
        return "it holds something other than files"
    if any(map(_open_to_others, states)):
        return "another user may have written it"
    return "" if _stem(found) == _stem(bundle) else "it is another bundle's"


def doubt_folder(folder: Path) -> str:
    """Return why no entry of this folder is to be trusted: another user may rename what is in it; empty if none may."""
    try:
        state = folder.stat()
    except OSError as error:
        return f"{folder}: {error.strerror}"
    shared = state.st_mode & stat.S_ISVTX and state.st_uid in {0, os.geteuid()}  # as /tmp: none renames another's
    return f"another user may write to {folder}" if _open_to_others(state) and not shared else ""


def close_to_others(entry: Path) -> None:
    """Take the right to write an entry of our own from all but us, whatever the process's umask left.

    Raises:
        BundleError: the disk refused.
    """
    try:
        for place in (entry, *entry.rglob("*")):
            place.chmod(0o755 if place.is_dir() else 0o644)
    except OSError as error:
        raise BundleError(f"cannot set the rights of {entry}: {error.strerror}.") from error


def _installed(flavour: Flavour) -> str:
    try:
        return "" if absent(flavour) else str(load_module(flavour).__version__)
    except BackendError as error:
        _log.warning("no engine of the cache is used: %s", error)
        return ""


def remove_old(bundle: Bundle, folder: Path) -> None:
    """Remove the entries of this bundle's name, but of another graph, that nobody took for 30 days."""
    stem = _stem(bundle)
    name, _, digest = stem.rpartition(".")
    pattern = re.compile(rf"{re.escape(name)}\.(?!{digest})[0-9a-f]{{16}}\.({'|'.join(MODULES)})-[^/]+-sm[0-9]+")
    for entry in folder.glob(f"{name}.*"):
        if not pattern.fullmatch(entry.name):
            continue
        with suppress(OSError):
            state = entry.lstat()
            if stat.S_ISDIR(state.st_mode) and state.st_mtime < time.time() - _KEPT:
                shutil.rmtree(entry)


def _trusted(entry: Path, bundle: Bundle) -> bool:
    if problem := doubt(entry, bundle):
        _log.warning("the engine in %s is not used: %s", entry, problem)
    return not problem


def _open_to_others(state: os.stat_result) -> bool:
    ours = state.st_gid in {os.getegid(), *os.getgroups()}
    return (
        state.st_uid not in {0, os.geteuid()}
        or bool(state.st_mode & stat.S_IWOTH)
        or (bool(state.st_mode & stat.S_IWGRP) and not ours)
    )


def _stem(bundle: Bundle) -> str:
    """A name that is a file's, and a digest of all that an engine depends on: not of when the bundle was made."""
    name = re.sub(r"[^A-Za-z0-9._-]", "-", bundle.manifest.name)[:80].lstrip(".")
    files = {name: file for name, file in bundle.manifest.files.items() if not name.startswith("engines/")}
    content = manifests.dump(replace(bundle.manifest, created="", engines=(), notes=(), tools={}, files=files))
    return f"{name}.{hashlib.sha256(content.encode()).hexdigest()[:16]}"
