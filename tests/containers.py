"""Images built for real without a container engine's daemon, and a container entered as the image says: for tests.

buildah builds with chroot isolation over a base made by debootstrap. A container is the image's root under namespaces
of its own (processes, mounts, network), read-only, as the image's user, with its command as process 1. All of it needs
root, as CI has it; ``missing`` says what else is not there.
"""

import ast
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("buildah", "debootstrap", "apt-get", "unshare", "nsenter", "ip", "chroot", "tar")
_PLACES = ("index-url", "extra-index-url", "find-links")
_CARRIED = (*_PLACES, "trusted-host", "proxy", "timeout")
_ENTER = """
set -e
root=$1 models=$2 user=$3 dir=$4; shift 4
mount --bind "$root" "$root"
mount --bind "$models" "$root/models"
mount -t proc proc "$root/proc"
mount --rbind /dev "$root/dev"
mount -t tmpfs -o mode=1777 tmpfs "$root/tmp"
mount -o remount,ro,bind "$root"
ip link set lo up
exec chroot --userspec="$user" --groups="${user#*:}" "$root" /usr/bin/env -i -C "$dir" "$@"
"""


def missing() -> str:
    """Return why no image can be built here; empty where one can."""
    if os.geteuid() != 0:
        return "images are built and entered as root"
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    return f"apt-get install {' '.join(absent)}: not there" if absent else ""


def run(*command: object, seconds: float = 900.0, **more: Any) -> str:
    """Run a command; return its output; a failure shows the end of what it said."""
    done: subprocess.CompletedProcess[str] = subprocess.run(
        list(map(str, command)), check=False, capture_output=True, text=True, timeout=seconds, errors="replace", **more
    )
    assert done.returncode == 0, f"{command[0]}: status {done.returncode}\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
    return done.stdout


@dataclass(frozen=True)
class Image:
    """A built image: what its configuration says, and the bytes of each layer with the line that made it."""

    name: str
    config: Mapping[str, Any]
    layers: tuple[tuple[str, int], ...]


class Workshop:
    """A store of images in a folder of its own; everything in it is gone when it closes."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._scratch = folder / "scratch"
        self._scratch.mkdir(parents=True)

    def buildah(self, *arguments: object) -> str:
        """Run buildah on this store."""
        store = ("--storage-driver", "vfs", "--root", self._folder / "store", "--runroot", self._folder / "run")
        return run("buildah", *store, *arguments, env=os.environ | {"TMPDIR": str(self._scratch)})

    def make_base(self) -> str:
        """Put a small Debian with Python into the store, like the ones that people start from."""
        context = self._folder / "base"
        context.mkdir()
        os.link(debian(), context / "base.tar")
        (context / "Dockerfile").write_text("FROM scratch\nADD base.tar /\n", "utf-8")
        self.buildah("bud", "--isolation", "chroot", "--format", "docker", "-t", "base", context)
        return "localhost/base"

    def build(self, target: str, *more: str, **arguments: str) -> Image:
        """Build one target of docker/Dockerfile with these build arguments, packages from where this host's pip looks.

        ``--layers`` keeps each line's layer apart, which costs a copy of the root for each.
        """
        name = "-".join([target, *(value for key, value in arguments.items() if key != "BASE")])
        given = [part for key, value in arguments.items() for part in ("--build-arg", f"{key}={value}")]
        self.buildah(
            "bud", "--isolation", "chroot", "--format", "docker", "--target", target, "-t", name, *more, *given,
            *packages_from_here(self._scratch), "-f", ROOT / "docker" / "Dockerfile", ROOT,
        )  # fmt: skip
        shown = json.loads(self.buildah("inspect", "--type", "image", name))
        return Image(name, shown["Docker"]["config"], self._layers(shown))

    def _layers(self, shown: Mapping[str, Any]) -> tuple[tuple[str, int], ...]:
        known = json.loads((self._folder / "store" / "vfs-layers" / "layers.json").read_text("utf-8"))
        sizes = {layer["diff-digest"]: layer["diff-size"] for layer in known if "diff-digest" in layer}
        lines = [step["created_by"] for step in shown["OCIv1"]["history"] if not step.get("empty_layer")]
        digests = shown["OCIv1"]["rootfs"]["diff_ids"]
        return tuple((line, sizes[digest]) for line, digest in zip(lines, digests, strict=True))

    @contextmanager
    def opened(self, image: Image) -> Iterator[Path]:
        """Yield the folder that holds the image's root."""
        container = self.buildah("from", image.name).strip()
        try:
            yield Path(self.buildah("mount", container).strip())
        finally:
            self.buildah("rm", container)

    def close(self) -> None:
        """Remove every image, and what building them left."""
        shutil.rmtree(self._folder, ignore_errors=True)


def debian() -> Path:
    """Return a tar of a Debian of this host's own release with Python; made once, kept in the cache folder."""
    release = dict(
        line.split("=", 1) for line in Path("/etc/os-release").read_text("utf-8").splitlines() if "=" in line
    )
    name = release["VERSION_CODENAME"].strip('"')
    folder = Path(os.environ.get("ENGINEWORKS_CACHE") or ROOT / ".cache-ci") / "containers"
    kept = folder / f"{name}.tar"
    if not kept.exists():
        folder.mkdir(parents=True, exist_ok=True)
        root = folder / f".{name}.{os.getpid()}"
        try:
            extra = "--include=python3,python3-venv"
            run("debootstrap", "--variant=minbase", extra, name, root, _mirror(name))
            shutil.rmtree(root / "var" / "cache" / "apt", ignore_errors=True)
            shutil.rmtree(root / "var" / "lib" / "apt" / "lists", ignore_errors=True)
            run("tar", "-C", root, "--one-file-system", "-cf", f"{root}.tar", ".")
            Path(f"{root}.tar").replace(kept)
        finally:
            shutil.rmtree(root, ignore_errors=True)
    return kept


def _mirror(release: str) -> str:
    """Return where this host takes Debian from."""
    lines = run("apt-get", "indextargets", "--format", "$(SITE) $(RELEASE) $(COMPONENT)", "Created-By: Packages")
    sites = [line.split()[0] for line in lines.splitlines() if line.split()[1:] == [release, "main"]]
    assert sites, f"apt knows no source of {release} main"
    return sites[0]


def package_places() -> set[str]:
    """Return where this host's pip looks for packages: addresses, and the folder of each that is on this host."""
    found = _pip_settings()
    places = {place for key in _PLACES for place in found.get(key, "").split()}
    return places | {str(Path(place[7:]).parent) for place in places if place.startswith("file:///")}  # linked to


def _pip_settings() -> dict[str, str]:
    said = run(sys.executable, "-m", "pip", "config", "list")
    settings = dict(line.partition("=")[::2] for line in said.splitlines() if "=" in line)
    return {key.rpartition(".")[2]: str(ast.literal_eval(value)) for key, value in settings.items()}


def packages_from_here(folder: Path) -> list[str]:
    """Return the arguments that let pip inside a build find packages where it finds them on this host."""
    found = _pip_settings()
    kept = {key: value for key, value in found.items() if key in _CARRIED}
    arguments = []
    if certificate := found.get("cert"):
        kept["cert"] = "/run/secrets/ca"
        arguments += ["--secret", f"id=ca,src={certificate}"]
    conf = folder / "pip.conf"
    conf.write_text("[global]\n" + "".join(f"{key} = {value}\n" for key, value in kept.items()), "utf-8")
    folders = (place for place in package_places() if place.startswith("/"))
    mounts = [part for place in sorted(folders) if Path(place).is_dir() for part in ("--volume", f"{place}:{place}:ro")]
    return ["--secret", f"id=pip,src={conf}", *arguments, *mounts]


class Container:
    """An image's command, running: nothing outside reaches its network, and it can write to /tmp alone."""

    def __init__(self, image: Image, root: Path, models: Path, log: Path, *more: str, **environment: str) -> None:
        config = image.config
        variables = [*config["Env"], *(f"{name}={value}" for name, value in environment.items())]
        command = [*config["Entrypoint"], *(more or config["Cmd"])]
        namespaces = ("--mount", "--pid", "--net", "--fork", "--kill-child")
        inside = (root, models, config["User"], config["WorkingDir"], *variables, *command)
        self._log = log
        with log.open("wb") as stream:
            self.process = subprocess.Popen(
                ["unshare", *namespaces, "bash", "-c", _ENTER, "enter", *map(str, inside)],
                stdin=subprocess.DEVNULL, stdout=stream, stderr=stream,
            )  # fmt: skip

    @property
    def said(self) -> str:
        """Everything that it has written so far."""
        return self._log.read_text("utf-8", "replace")

    @property
    def pid(self) -> int:
        """Its first process, as this host numbers it."""
        number = self.process.pid
        (child,) = Path(f"/proc/{number}/task/{number}/children").read_text("utf-8").split()
        return int(child)

    def wait_for(self, words: str, seconds: float = 120.0) -> None:
        """Wait until it has said something."""
        end = time.monotonic() + seconds
        while words not in self.said:
            assert self.process.poll() is None and time.monotonic() < end, f"{words!r} was not said: {self.said}"
            time.sleep(0.05)

    def beside(self, *command: str) -> str:
        """Run a program of this host in the container's network."""
        return run("nsenter", f"--target={self.pid}", "--net", *command, seconds=60.0)

    def inside(self, image: Image, *command: str) -> str:
        """Run a program of the image in the container, as its user."""
        user, group = image.config["User"].split(":")
        place = (f"--target={self.pid}", "--all", f"--setuid={user}", f"--setgid={group}", "--root", "--wd=/")
        return run("nsenter", *place, "/usr/bin/env", "-i", *image.config["Env"], *command, seconds=60.0)

    def end(self, number: int = signal.SIGTERM) -> int:
        """Send a signal to its first process; return the exit status."""
        os.kill(self.pid, number)
        return self.process.wait(60.0)

    def close(self) -> None:
        """End it, whatever it does; its mounts go with its namespaces.

        Its first process is ended by its own number: whoever becomes another user has lost the wish to die with its
        parent (prctl(2), PR_SET_PDEATHSIG), and ``--kill-child`` with it.
        """
        with contextlib.suppress(ValueError, FileNotFoundError, ProcessLookupError):  # it has ended already
            os.kill(self.pid, signal.SIGKILL)
        self.process.kill()
        self.process.wait()
