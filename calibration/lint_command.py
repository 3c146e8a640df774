"""The command ``lint-model``: what TensorRT refuses or misreads in a Q/DQ graph, node by node, and the mend."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from engineworks.calibration.lint import Finding, lint
from engineworks.calibration.mend import fix
from engineworks.runtime.bundle import GRAPH
from engineworks.runtime.command import leave, status_of
from engineworks.runtime.errors import ExportError

if TYPE_CHECKING:
    from onnx import ModelProto


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(argv: list[str] | None = None) -> int:
    """Run ``lint-model`` with these arguments (default: the process's own); return its exit status."""
    return status_of(_command, "lint-model", argv)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="ONNX|BUNDLE")
@click.option("--fix", "target", metavar="FILE", help="Write a copy in which all is mended that can be without a loss.")
@click.option("--force", is_flag=True, help="Replace the file that stands there.")
@click.option("--json", "as_json", is_flag=True, help="Print the findings as JSON.")
def _command(path: str, target: str | None, force: bool, as_json: bool) -> int:
    """Hold a Q/DQ graph against TensorRT's rules; exit 1 where it would be refused.

    Any tool's graph will do; one without Q and DQ has nothing to find.
    """
    model = _read(Path(path))
    found: Sequence[Finding] = lint(model)
    if target is not None:
        mended = fix(model)
        _write(Path(target), mended.model, force)
        click.echo(f"lint-model: mended {len(mended.done)} of {len(found)} findings: {target}", err=True)
        found = mended.left
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in found], indent=2))
    else:
        for line in lines(found):
            click.echo(line)
    return int(any(finding.severity == "refuse" for finding in found))


def lines(found: Sequence[Finding]) -> Iterator[str]:
    """Yield the findings as a person reads them, and their number."""
    for finding in found:
        mend = f"{finding.mend}{' (--fix does it)' if finding.mechanical else ''}"
        yield f"{finding.severity}: {finding.node}: {finding.what} [{finding.rule}]. Mend: {mend}"
    refused = sum(finding.severity == "refuse" for finding in found)
    yield f"{refused} refused, {len(found) - refused} warned of" if found else "nothing found"


def _read(path: Path) -> "ModelProto":
    """Read a graph, or a bundle's.

    Raises:
        ExportError: there is none, it is no ONNX, or its weights lie in files beside it.
    """
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped, unused-ignore]
    from onnx import ModelProto, TensorProto

    file = path / GRAPH if path.is_dir() else path
    try:
        model: ModelProto = ModelProto.FromString(file.read_bytes())
    except (DecodeError, OSError) as error:
        raise ExportError(f"{path}: expected an ONNX file or a bundle ({error}).") from error
    if not model.graph.node:
        raise ExportError(f"{path}: expected an ONNX file or a bundle, found no graph in it.")
    if any(tensor.data_location == TensorProto.EXTERNAL for tensor in model.graph.initializer):
        raise ExportError(f"{path}: its weights lie in another file. Save it as one: onnx.save(onnx.load(…), …).")
    return model


def _write(file: Path, model: "ModelProto", force: bool) -> None:
    try:
        with file.open("wb" if force else "xb") as stream:
            stream.write(model.SerializeToString())
    except FileExistsError as error:
        raise ExportError(f"--fix {file}: it is there already. Pass --force to replace it.") from error
    except OSError as error:
        raise ExportError(f"--fix {file}: cannot be written ({error.strerror}).") from error


if __name__ == "__main__":
    run()
