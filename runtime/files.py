"""A folder that appears whole or not at all.

It is filled under a hidden name beside its target, flushed to the disk, and moved with one ``renameat2``: into a free
name (never over something), or in exchange for the old folder. A process that is killed leaves its hidden folder
behind; the next writer to the same target finds it unlocked and removes it.
"""

import ctypes
import errno
import fcntl
import os
import re
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

_AT_FDCWD = -100
_NOREPLACE = 1  # linux/fs.h, RENAME_NOREPLACE
_EXCHANGE = 2  # linux/fs.h, RENAME_EXCHANGE
_OLD = "-old"
_PATIENCE = 20.0  # seconds
_UNSUPPORTED = {errno.EINVAL, errno.ENOSYS, errno.ENOTSUP}


@dataclass(frozen=True)
class NewFolder:
    """A folder being filled; it is not yet under its final name."""

    path: Path

    def write(self, name: str, data: bytes) -> None:
        """Write one file and flush it to the disk; folders inside the name are made."""
        file = self.path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        _sync(file.parent)


@contextmanager
def new_folder(target: Path, *, replace: bool) -> Iterator[NewFolder]:
    """Fill a folder that takes the name ``target`` when the block ends well, and vanishes when it does not.

    Args:
        target: the final name; its parent must exist.
        replace: exchange the folder that stands there for the new one; else a folder there is an error.

    Raises:
        OSError: the disk is full or read-only, or ``target`` appeared meanwhile (FileExistsError).
    """
    target = target.absolute()
    folder, lock = _claim(target)
    try:
        yield NewFolder(folder)
        os.fsync(lock)
        _move(folder, target, replace=replace)
        _sync(target.parent)
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # the old folder after an exchange, the new one after a failure
        os.close(lock)


def _move(folder: Path, target: Path, *, replace: bool) -> None:
    """Take a free name, or swap two folders, in one step; in several where the file system cannot."""
    try:
        moved = _rename(folder, target, _NOREPLACE)
    except FileExistsError:
        if not replace or target.is_symlink() or not target.is_dir():
            raise
        moved = _rename(folder, target, _EXCHANGE)
    if not moved:
        with _locked(target.parent):
            _move_in_steps(folder, target, replace=replace)


def _move_in_steps(folder: Path, target: Path, *, replace: bool) -> None:
    """Move with plain renames; the old folder is set aside meanwhile, and put back on a failure."""
    old = folder.with_name(folder.name + _OLD)
    if target.exists() or target.is_symlink():
        if not replace or target.is_symlink() or not target.is_dir():
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))
        target.rename(old)
    try:
        folder.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    if old.exists():
        old.rename(folder)


def _rename(source: Path, target: Path, flag: int) -> bool:
    """Call ``renameat2``; False where the system or the file system does not know it."""
    function = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if function is None:
        return False
    if function(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in _UNSUPPORTED:
        return False
    raise OSError(number, os.strerror(number), str(target))


def _claim(target: Path) -> tuple[Path, int]:
    """Make and lock a hidden folder; the parent's lock keeps another writer from taking it for an abandoned one."""
    prefix = f".{target.name}.partial-"
    with _locked(target.parent):
        _remove_abandoned(target, prefix)
        folder = target.parent / f"{prefix}{secrets.token_hex(8)}"
        folder.mkdir()
        lock = os.open(folder, os.O_RDONLY)
        fcntl.flock(lock, fcntl.LOCK_EX)
        return folder, lock


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    lock = os.open(folder, os.O_RDONLY)
    try:
        _wait_for(lock, folder)
        yield
    finally:
        os.close(lock)


def _wait_for(lock: int, folder: Path) -> None:
    """Take a lock that others hold for moments only; one that stays held is an error, not a wait without end."""
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            if time.monotonic() > deadline:
                raise OSError(errno.EBUSY, f"another writer keeps {folder.name} locked", str(folder)) from error
            time.sleep(0.005)


def _remove_abandoned(target: Path, prefix: str) -> None:
    """Remove what killed writers left; an old folder that was about to be replaced gets its name back."""
    ours = re.compile(f"{re.escape(prefix)}[0-9a-f]{{16}}({_OLD})?")
    for folder in target.parent.iterdir():
        if not ours.fullmatch(folder.name):
            continue
        if folder.name.endswith(_OLD) and not target.exists():
            folder.rename(target)
            continue
        try:
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:  # its writer removed or renamed it meanwhile, or it is no folder
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
        except BlockingIOError:  # another process is filling it
            pass
        finally:
            os.close(lock)


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
