"""A bundle on disk: read it without trust, write it all or nothing.

A reader checks the manifest, then the digest of every file, before any native code sees a byte: a TensorRT plan is
native code. A writer fills a hidden folder beside the target and moves it into place with one system call.
"""

import hashlib
import json
import os
import stat
from collections.abc import Container, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from engineworks.runtime import manifest as manifests
from engineworks.runtime.errors import BundleError
from engineworks.runtime.manifest import FileRecord, Manifest

MANIFEST = "manifest.json"
GRAPH = "model.onnx"
CPU_GRAPH = "cpu.onnx"  # where ONNX Runtime has no CPU kernels for the typed graph (BF16), or no fast ones (INT8)
LAYERS = "layers.json"  # each value of the graph beside the original's, where that was asked for
LAYER_VALUES = "layers.npz"  # a few numbers of each: the original's, and the graph's
CALIBRATION = "calibration.json"  # how an INT8 graph's scales came about
REFERENCE = "reference.npz"
REPORT = "report.html"
_NO_WAIT = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0)  # a pipe in a file's place is refused, and not waited for
_LARGEST_MANIFEST = 64 << 20
_STEP = 4 << 20


@dataclass(frozen=True)
class Bundle:
    """An opened bundle: its folder and its manifest. Files come through ``read``, checked."""

    path: Path
    manifest: Manifest

    def read(self, name: str) -> bytes:
        """Return the bytes of one file of the bundle, after its digest has been checked.

        Raises:
            BundleError: the file is not listed, absent, or not as it was written.
        """
        record = self._record(name)
        try:
            _check_size(self.path.name, name, record, (self.path / name).stat())
            content = (self.path / name).read_bytes()
        except OSError as error:
            raise BundleError(f"bundle {self.path.name}: cannot read {name} ({error.strerror}).") from error
        _check_digest(self.path.name, name, record, hashlib.sha256(content).hexdigest())
        return content

    @contextmanager
    def checked(self, name: str) -> Iterator[str]:
        """Yield a path for native code to open one file by, after its digest has been checked, without holding it.

        The path leads to the open file itself, whatever is moved to its name meanwhile.

        Raises:
            BundleError: the file is not listed, absent, not as it was written, or written to while it was in use.
        """
        record = self._record(name)
        try:
            descriptor = os.open(self.path / name, _NO_WAIT)
        except OSError as error:
            raise BundleError(f"bundle {self.path.name}: cannot read {name} ({error.strerror}).") from error
        try:
            before = os.fstat(descriptor)
            _check_size(self.path.name, name, record, before)
            _check_digest(self.path.name, name, record, self._digest(name, descriptor))
            opened = Path(f"/proc/self/fd/{descriptor}")
            yield str(opened if opened.exists() else self.path / name)
            after = os.fstat(descriptor)
        finally:
            os.close(descriptor)
        if (before.st_mtime_ns, before.st_size) != (after.st_mtime_ns, after.st_size):
            raise BundleError(f"bundle {self.path.name}: {name} was written to while it was opened. Load it again.")

    def _digest(self, name: str, descriptor: int) -> str:
        """Digest in large steps: after each the thread has to get Python's lock back, from whoever is importing."""
        digest, room = hashlib.sha256(), memoryview(bytearray(_STEP))
        try:
            with os.fdopen(descriptor, "rb", buffering=0, closefd=False) as file:
                while count := file.readinto(room):
                    digest.update(room[:count])
                return digest.hexdigest()
        except OSError as error:
            raise BundleError(f"bundle {self.path.name}: cannot read {name} ({error.strerror}).") from error

    def verify(self, all_but: Container[str] = ()) -> None:
        """Check the digest of every file, or of all but some.

        Raises:
            BundleError: naming the first file that is absent, cut or edited.
        """
        for name in self.manifest.files:
            if name not in all_but:
                with self.checked(name):
                    pass

    def _record(self, name: str) -> FileRecord:
        record = self.manifest.files.get(name)
        if record is None:
            raise BundleError(f"bundle {self.path.name}: has no {name}; it holds {', '.join(self.manifest.files)}.")
        return record


def open_bundle(path: Path | str) -> Bundle:
    """Open a bundle folder and check its manifest (not yet the files: ``Bundle.read`` and ``Bundle.verify`` do).

    Raises:
        BundleError: no folder, no manifest, a later schema, an edited manifest, or a file name that leaves the folder.
    """
    folder = Path(path)
    file = folder / MANIFEST
    try:
        if not file.is_file():
            what = "has no manifest.json, so it is no bundle" if folder.is_dir() else "is not a folder"
            raise BundleError(f"{folder} {what}. Expected what export-model wrote.")
        if file.stat().st_size > _LARGEST_MANIFEST:
            raise BundleError(f"bundle {folder.name}: manifest.json is over {_LARGEST_MANIFEST >> 20} MiB; not ours.")
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise BundleError(f"bundle {folder.name}: cannot read manifest.json ({error}).") from error
    manifest = manifests.parse(text, folder.name)
    for name in manifest.files:
        _check_name(folder, name)
    return Bundle(folder, manifest)


def write_bundle(out: Path, manifest: Manifest, files: Mapping[str, bytes], *, force: bool = False) -> Bundle:
    """Write a bundle: whole, or not at all, whatever happens on the way.

    Args:
        out: the bundle's folder; its parent must exist.
        manifest: all but ``files``, which is filled in here.
        files: name inside the bundle (``engines/x.engine`` allowed) to content.
        force: replace what stands at ``out``, in one step, if that is a bundle or an empty folder.

    Raises:
        BundleError: ``out`` exists and ``force`` is not given, or is no bundle; a file's name is not a plain path
            inside the bundle; or the disk refused.
    """
    from engineworks.runtime.files import new_folder

    for name in files:
        _check_name(out, name)
    records = {name: FileRecord(hashlib.sha256(data).hexdigest(), len(data)) for name, data in sorted(files.items())}
    complete = replace(manifest, files=records)
    text = manifests.dump(complete)
    check_target(out, force=force)
    try:
        with new_folder(out, replace=force) as folder:
            for name, data in files.items():
                folder.write(name, data)
            folder.write(MANIFEST, text.encode())
    except OSError as error:
        raise BundleError(f"cannot write {out}: {error.strerror or error}. Nothing was left behind.") from error
    return Bundle(out, complete)


def check_target(out: Path, *, force: bool) -> None:
    """Refuse a folder that may not be written, before hours of work and not after.

    Raises:
        BundleError: ``out`` exists and ``force`` is False, is not a bundle, or has no parent.
    """
    try:
        _check_target(out, force=force)
    except OSError as error:
        raise BundleError(f"cannot write {out}: {error.strerror}.") from error


def _check_target(out: Path, *, force: bool) -> None:
    if not out.parent.is_dir():
        raise BundleError(f"cannot write {out}: the folder {out.parent} does not exist. Make it first.")
    if out.exists() or out.is_symlink():
        _check_replaceable(out, force=force)
    _try_folder(out)


def _check_replaceable(out: Path, *, force: bool) -> None:
    if not force:
        raise BundleError(f"{out} exists. Pass --force to replace it, or -o for another folder.")
    if Path.cwd().is_relative_to(out.resolve()):
        raise BundleError(f"{out} is the folder that you are in; it cannot be replaced under you. Pass -o.")
    if out.is_symlink() or not out.is_dir():
        raise BundleError(f"{out} is not a folder, so --force does not replace it. Remove it, or pass -o.")
    if any(out.iterdir()) and not _is_bundle(out):
        raise BundleError(f"{out} holds something other than a bundle, so --force does not replace it. Pass -o.")


def _try_folder(out: Path) -> None:
    """See whether a folder can be made beside ``out``: permissions do not tell (a full disk, /proc, root)."""
    import tempfile

    tempfile.TemporaryDirectory(prefix=f".{out.name[:80]}.try-", dir=out.parent).cleanup()


def _is_bundle(folder: Path) -> bool:
    try:
        content = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(content, dict) and {"schema", "digest"} <= content.keys()


def _check_name(folder: Path, name: str) -> None:
    path = PurePosixPath(name)
    plain = name.isprintable() and "\\" not in name and ".." not in path.parts and not path.is_absolute()
    if not plain or name in {"", ".", MANIFEST} or name != str(path) or not _inside(folder, name):
        raise BundleError(f"bundle {folder.name}: the file name {name!r} leaves the bundle; refused.")


def _inside(folder: Path, name: str) -> bool:
    # not Path.resolve, which raises where a link points to itself
    return Path(os.path.realpath(folder / name)).is_relative_to(os.path.realpath(folder))


def _check_size(bundle: str, name: str, record: FileRecord, status: os.stat_result) -> None:
    """Refuse before anything is read: a pipe would block, and a swollen file would fill the memory."""
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"bundle {bundle}: {name} is not a file. Re-run export-model.")
    if status.st_size != record.bytes:
        raise BundleError(
            f"bundle {bundle}: {name} is damaged: expected {record.bytes} bytes, got {status.st_size}. "
            "Re-run export-model."
        )


def _check_digest(bundle: str, name: str, record: FileRecord, digest: str) -> None:
    if digest != record.sha256:
        raise BundleError(
            f"bundle {bundle}: {name} was edited or damaged: expected sha256 {record.sha256[:12]}…, "
            f"got {digest[:12]}…. Re-run export-model."
        )
