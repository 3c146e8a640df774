"""TensorRT-RTX's runtime cache: kernels compiled on this GPU, kept so that the next start is quick.

It lies beside the bundle, or in the cache folder where that cannot be written. It holds native code that no digest
covers, so a file that another user owns or may write is not read. RTX itself refuses one of another GPU or version.
"""

import os
import stat
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

from engineworks.runtime.bundle import Bundle
from engineworks.runtime.manifest import EngineRecord

_LARGEST = 1 << 30


class RuntimeCache:
    """The cache of one engine on one kind of GPU; ``notes`` says what became of it, in words."""

    def __init__(self, paths: tuple[Path, ...]) -> None:
        self.paths = paths
        self.notes: list[str] = []
        self._cache: Any = None
        self._saved = b""

    def attach(self, runtime_config: Any) -> None:
        """Give the engine's contexts a cache, filled from the disk where that fits; without the feature do nothing."""
        if not hasattr(runtime_config, "create_runtime_cache"):
            return
        runtime_cache = self._cache or runtime_config.create_runtime_cache()
        if runtime_cache is None:
            self.notes.append("no runtime cache: TensorRT-RTX gave none")
            return
        if self._cache is None:
            self._fill(runtime_cache)
        if not runtime_config.set_runtime_cache(runtime_cache):
            self.notes.append("no runtime cache: TensorRT-RTX did not take it")
            return
        self._cache = runtime_cache

    def save(self) -> None:
        """Write the cache if it has changed, whole or not at all; a disk that refuses is noted, not raised."""
        runtime_cache = self._cache
        memory = None if runtime_cache is None else runtime_cache.serialize()
        content = b"" if memory is None else bytes(memory)
        if not content or content == self._saved:
            return
        problems = []
        for path in self.paths:
            try:
                _write(path, content)
            except OSError as error:
                problems.append(f"{path}: {error.strerror or error}")
                continue
            self._saved = content
            return
        self.notes.append(f"runtime cache not kept ({'; '.join(problems)}): the next start compiles again")

    def close(self) -> None:
        """Let go of the cache's memory."""
        self._cache = None

    def _fill(self, runtime_cache: Any) -> None:
        for path in self.paths:
            content, problem = _read(path)
            if problem:
                self.notes.append(f"runtime cache {path} not read: {problem}")
            if not content:
                continue
            if runtime_cache.deserialize(content):
                self._saved = content
                return
            self.notes.append(f"runtime cache {path} is of another GPU, driver or version: compiled again")


def cache_paths(bundle: Bundle, record: EngineRecord, target: str) -> tuple[Path, ...]:
    """Where a cache may lie: beside the bundle, else in the user's cache folder; best first."""
    entry = bundle.manifest.files.get(record.file)
    name = f"{bundle.path.name}.{target}-{entry.sha256[:12] if entry else record.version}.rtx-cache"
    beside = bundle.path.absolute().parent / name
    folder = cache_folder()
    return (beside,) if folder is None else (beside, folder / "rtx" / name)


def cache_folder() -> Path | None:
    """Return where what can be made again is kept; None where the user has no such place."""
    if asked := os.environ.get("ENGINEWORKS_CACHE"):
        return Path(asked)
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "engineworks"
    except RuntimeError:  # no HOME, and a user without an entry in passwd: a container's usual state
        return None


def _read(path: Path) -> tuple[bytes, str]:
    """Return a cache's bytes, or nothing and why it is not to be trusted."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return b"", ""
    except OSError as error:
        return b"", error.strerror or str(error)
    try:
        if problem := _doubt(os.fstat(handle)):  # of the descriptor: what is checked is what is read
            return b"", problem
        with open(handle, "rb", closefd=False) as stream:
            return stream.read(), ""
    finally:
        os.close(handle)


def _doubt(status: os.stat_result) -> str:
    if not stat.S_ISREG(status.st_mode) or status.st_size > _LARGEST:
        return "it is no file of ours"
    if status.st_uid not in {0, os.geteuid()} or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return "another user may have written it"
    return ""


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.name[:80]}.", dir=path.parent)  # mode 0600
    try:
        with open(handle, "wb") as stream:  # noqa: PTH123 (a descriptor)
            stream.write(content)
            stream.flush()
            os.fsync(handle)
        Path(name).replace(path)
    except BaseException:
        with suppress(OSError):
            Path(name).unlink()
        raise
