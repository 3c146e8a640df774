"""The command ``deploy-model``: a bundle as what a cluster's server takes, for Triton, KServe or Ray Serve.

All targets are looked at before the first is written; each appears whole or not at all. Paths go to stdout, and what
the target cannot express to stderr.
"""

import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from engineworks.runtime.bundle import Bundle, open_bundle
from engineworks.runtime.command import leave, status_of
from engineworks.runtime.deploy_kserve import Scale, kserve_manifest
from engineworks.runtime.deploy_ray import LOOPBACK, ray_config
from engineworks.runtime.deploy_triton import CONFIG, TritonBackend, triton_model
from engineworks.runtime.errors import BundleError
from engineworks.runtime.files import new_folder

_HOMES = {
    "backend": ("triton",),
    "target": ("triton",),
    "storage": ("kserve",),
    "image": ("kserve",),
    "host": ("ray",),
    "gpus": ("kserve", "ray"),
    "replicas": ("kserve", "ray"),
}
Step = tuple[Callable[[], Path], tuple[str, ...]]


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(argv: list[str] | None = None) -> int:
    """Run ``deploy-model`` with these arguments (default: the process's own); return its exit status."""
    return status_of(_command, "deploy-model", argv)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="BUNDLE")
@click.option("--triton", type=click.Path(path_type=Path), metavar="DIR", help="Triton model repository to add it to.")
@click.option("--kserve", type=click.Path(path_type=Path), metavar="FILE", help="KServe manifest; with --storage.")
@click.option("--ray", type=click.Path(path_type=Path), metavar="FILE", help="Configuration for Ray's serve deploy.")
@click.option("--name", help="Its name there; default the bundle's.")
@click.option("--backend", type=click.Choice(["auto", "onnxruntime", "tensorrt"]), help="Of Triton; default auto.")
@click.option("--target", metavar="sm_NN", help="Of Triton: whose engine, where there are several.")
@click.option("--storage", metavar="URI", help="Of KServe: where the cluster finds the files.")
@click.option("--image", help="Of KServe: our runtime image; default KServe's own Triton.")
@click.option("--host", help="Of Ray: where every node listens; default 127.0.0.1.")
@click.option("--gpus", type=click.IntRange(min=0), help="Of KServe and Ray: for each replica; default 1, 0: CPUs.")
@click.option("--replicas", metavar="MIN:MAX", help="Of KServe and Ray; default 1:4.")
@click.option("--force", is_flag=True, help="Replace what stands there.")
def _command(path: str, force: bool, **options: Any) -> int:
    """Write BUNDLE as a Triton model, a KServe manifest or a Ray Serve application."""
    targets = {name: options.pop(name) for name in ("triton", "kserve", "ray")}
    _check_usage(targets, options)
    for write, notes in plan(open_bundle(path), **targets, force=force, **options):
        click.echo(write())
        for note in notes:
            click.echo(f"deploy-model: {note}", err=True)
    return 0


def plan(
    bundle: Bundle,
    *,
    triton: Path | None = None,
    kserve: Path | None = None,
    ray: Path | None = None,
    force: bool,
    **options: object,
) -> list[Step]:
    """Make everything ready to write; nothing is written before all of it is known to fit.

    Args:
        bundle: an opened bundle.
        triton: a model repository, or None.
        kserve: a file, or None.
        ray: a file, or None.
        force: replace what stands at a target.
        options: the command's ``name``, ``backend``, ``target``, ``storage``, ``image``, ``host``, ``gpus``,
            ``replicas``.

    Returns:
        For each target a function that writes it and returns its path, and notes for its reader.

    Raises:
        BundleError: a target exists, or the bundle does not fit it.
        BackendError: Triton cannot have the engine that was asked for.
    """
    given = {key: value for key, value in options.items() if value is not None}
    name = str(given["name"]) if "name" in given else None
    scale, m = _scale(given), bundle.manifest
    steps = list[Step]()
    if triton is not None:
        backend: TritonBackend = given.get("backend", "auto")  # type: ignore[assignment]
        target = str(given["target"]) if "target" in given else None
        model = triton_model(bundle, name=name, backend=backend, target=target)
        folder = triton / model.name
        _check_folder(folder, force=force)
        steps.append((lambda: write_folder(folder, model.files, force=force), model.notes))
    if kserve is not None:
        image = str(given["image"]) if "image" in given else None
        text, notes = kserve_manifest(m, str(given["storage"]), image=image, name=name, scale=scale)
        steps.append(_file_step(kserve, text, notes, force=force))
    if ray is not None:
        host = str(given.get("host", LOOPBACK))
        text, notes = ray_config(m, bundle.path, name=name, host=host, scale=scale)
        steps.append(_file_step(ray, text, notes, force=force))
    return steps


def write_folder(folder: Path, files: Mapping[str, bytes], *, force: bool) -> Path:
    """Write a folder, whole or not at all; its parent is made where it lacks.

    Raises:
        BundleError: the disk refused, or something appeared there meanwhile.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with new_folder(folder, replace=force) as new:
            for name, data in files.items():
                new.write(name, data)
    except OSError as error:
        raise BundleError(f"cannot write {folder}: {error.strerror or error}. Nothing was left behind.") from error
    return folder


def write_file(file: Path, text: str, *, force: bool) -> Path:
    """Write a file, whole or not at all.

    Raises:
        BundleError: the disk refused, or something appeared there meanwhile.
    """
    try:
        with tempfile.TemporaryDirectory(prefix=".deploy-", dir=file.parent) as hidden:
            new = Path(hidden, "new")
            with new.open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
            if force:
                new.replace(file)
            else:
                file.hardlink_to(new)  # which never goes over something
    except OSError as error:
        raise BundleError(f"cannot write {file}: {error.strerror or error}. Nothing was left behind.") from error
    return file


def _file_step(file: Path, text: str, notes: tuple[str, ...], *, force: bool) -> Step:
    if not file.parent.is_dir():
        raise BundleError(f"cannot write {file}: the folder {file.parent} does not exist. Make it first.")
    if file.is_dir() or (file.exists() and not file.is_file()):
        raise BundleError(f"{file} is not a file, so it is not replaced. Name another.")
    if (file.exists() or file.is_symlink()) and not force:
        raise BundleError(f"{file} exists. Pass --force to replace it, or name another file.")
    return (lambda: write_file(file, text, force=force)), notes


def _check_folder(folder: Path, *, force: bool) -> None:
    if folder.is_symlink() or (folder.exists() and not folder.is_dir()):
        raise BundleError(f"{folder} is not a folder, so it is not replaced. Remove it, or pass --name.")
    if not folder.exists():
        return
    if not force:
        raise BundleError(f"{folder} exists. Pass --force to replace it, or --name for another name.")
    if any(folder.iterdir()) and not (folder / CONFIG).is_file():
        raise BundleError(f"{folder} holds something other than a Triton model, so --force does not replace it.")


def _scale(given: Mapping[str, object]) -> Scale:
    least, _, most = str(given.get("replicas", "1:4")).partition(":")
    return Scale(int(str(given.get("gpus", 1))), int(least), int(most))


def _check_usage(targets: Mapping[str, Path | None], options: Mapping[str, object]) -> None:
    """Refuse what contradicts itself: an option of a target that is not asked for has no meaning."""
    if not any(targets.values()):
        raise click.UsageError("expected --triton DIR, --kserve FILE or --ray FILE, or several of them.")
    if targets["kserve"] is not None and options["storage"] is None:
        raise click.UsageError("--kserve needs --storage URI: where the cluster finds the files.")
    for option, homes in _HOMES.items():
        if options[option] is not None and not any(targets[home] for home in homes):
            raise click.UsageError(f"--{option} means something with {' or '.join(f'--{h}' for h in homes)} only.")
    if options["target"] is not None and options["backend"] == "onnxruntime":
        raise click.UsageError("--target names an engine, and --backend onnxruntime takes none.")
    _check_replicas(options["replicas"])


def _check_replicas(text: object) -> None:
    least, _, most = str(text or "1:4").partition(":")
    if not (least.isdecimal() and most.isdecimal() and 0 <= int(least) <= int(most) and int(most) >= 1):
        raise click.UsageError(f"--replicas: expected MIN:MAX with 0 ≤ MIN ≤ MAX, MAX of 1 or more; got {text!r}.")


if __name__ == "__main__":
    run()
