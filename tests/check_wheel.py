"""Compare what was built with the folders: ``python tests/check_wheel.py dist``; status 1 names what is wrong.

The wheel must hold the four folders' Python files, ``py.typed`` and data under ``engineworks/``, and nothing else:
plain top-level names (``runtime/``, ``models/``) would shadow a service's own. The sdist must hold what builds it.
"""

import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("export", "runtime", "models", "calibration")
DATA = {"export": ("*.html",), "runtime": ("*.html",), "models": ("*.safetensors", "*.npz", "*.txt", "*.jpg")}
NEEDED = ("LICENSE", "NOTICE", "README.md", "pyproject.toml", "PKG-INFO")


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or not Path(arguments[0]).is_dir():
        print("usage: check_wheel.py DIST", file=sys.stderr)
        return 2
    dist = Path(arguments[0])
    faults = [*one(dist, "*.whl", check_wheel), *one(dist, "*.tar.gz", check_sdist)]
    for fault in faults:
        print(f"check_wheel: {fault}", file=sys.stderr)
    return 1 if faults else 0


def one(dist: Path, pattern: str, check: Callable[[Path], Iterator[str]]) -> Iterator[str]:
    found = sorted(dist.glob(pattern))
    if len(found) != 1:
        yield f"{dist}: expected one {pattern}, got {len(found)}"
    else:
        yield from (f"{found[0].name}: {fault}" for fault in check(found[0]))


def check_wheel(wheel: Path) -> Iterator[str]:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if not name.endswith("/")}
    held = {name for name in names if ".dist-info/" not in name}
    wanted = {f"engineworks/{name}" for name in sources()}
    yield from (f"lacks {name}" for name in sorted(wanted - held))
    yield from (f"holds {name}, which is no tracked file of a folder" for name in sorted(held - wanted))
    for name in ("LICENSE", "NOTICE"):
        if not any(held.endswith(f".dist-info/licenses/{name}") for held in names):
            yield f"lacks the licence file {name}"


def check_sdist(sdist: Path) -> Iterator[str]:
    with tarfile.open(sdist) as archive:
        held = {name.partition("/")[2] for name in archive.getnames()}
    yield from (f"lacks {name}" for name in sorted({*NEEDED, *sources()} - held))
    strange = {name for name in held if name.partition("/")[0] in FOLDERS and Path(name).suffix} - sources()
    yield from (f"holds {name}, which is no tracked file" for name in sorted(strange))


def sources() -> set[str]:
    """The tracked files of the four folders that belong into a wheel; those not yet committed count as well."""
    command = ["git", "-C", str(ROOT), "ls-files", "--cached", "--others", "--exclude-standard", "--", *FOLDERS]
    listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()
    return {name for name in listed if (ROOT / name).is_file() and belongs(name)}


def belongs(name: str) -> bool:
    folder, _, file = name.partition("/")
    patterns = ("*.py", "py.typed", *DATA.get(folder, ()))
    return any(fnmatch(file, pattern) for pattern in patterns)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
