"""The command ``inspect-model``: what is in a bundle, in words or as its manifest, every digest checked first."""

import io
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import click

from engineworks.runtime import manifest as manifests
from engineworks.runtime.bundle import Bundle, open_bundle
from engineworks.runtime.errors import EngineworksError
from engineworks.runtime.inspect_layers import layer_lines, to_json, xrays
from engineworks.runtime.manifest import Manifest, Rung, Tensor
from engineworks.runtime.pays import predict, prediction_lines, predictions_to_json
from engineworks.runtime.why import why_lines


def run() -> None:
    """Run the command and exit with its status."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal may not know × and …
    sys.exit(main())


def main(argv: list[str] | None = None) -> int:
    """Run ``inspect-model`` with these arguments (default: the process's own); return its exit status.

    Where the reader of a pipe went away, click ends the process with status 1 and no traceback.
    """
    try:
        status = _command.main(args=argv, prog_name="inspect-model", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        return 130
    return int(status or 0)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="BUNDLE|ENGINE")
@click.option("--json", "as_json", is_flag=True, help="Print the manifest, or with --layers all that was found.")
@click.option("--why", is_flag=True, help="With INT8: each tensor, quantised or not, by which rule.")
@click.option("--layers", is_flag=True, help="What each engine computes in, kernel by kernel.")
@click.option("--against", metavar="OTHER", help="Predict which is faster, BUNDLE (A) or this one (B): does INT8 pay?")
@click.option("--gpu", help="With --against: on this GPU alone, such as L4; default all that both have engines for.")
@click.option("--batch", type=click.IntRange(min=1), help="With --layers or --against: how many rows.")
def _command(
    path: str, as_json: bool, why: bool, layers: bool, against: str | None, gpu: str | None, batch: int | None
) -> int:
    """Show what is in BUNDLE: network, weights, precision, inputs, outputs, parity, engines, files.

    An ENGINE, a TensorRT-RTX plan without its bundle, is shown as with --layers. Engines of TensorRT itself are looked
    into in their bundle, on a host that has TensorRT and the GPU that they are for.
    """
    if sum((why, layers, against is not None)) > 1 or (why and as_json):
        raise click.UsageError("--why, --layers and --against exclude each other, and --why has no --json.")
    layers = layers or (against is None and _is_file(path))
    if batch is not None and not layers and against is None:
        raise click.UsageError("--batch goes with --layers or --against.")
    if gpu is not None and against is None:
        raise click.UsageError("--gpu goes with --against.")
    try:
        if against is not None:
            text = _predicted(path, against, gpu, as_json, batch)
        else:
            text = _found_inside(path, as_json, batch) if layers else _of_bundle(path, as_json, why)
    except EngineworksError as error:
        click.echo(f"inspect-model: {error}", err=True)
        return 1
    click.echo(text, nl=False)
    return 0


def _is_file(path: str) -> bool:
    try:
        return Path(path).is_file()
    except (OSError, ValueError):
        return False


def _of_bundle(path: str, as_json: bool, why: bool) -> str:
    bundle = open_bundle(path)
    bundle.verify()
    if why:
        return "\n".join(map(_printable, why_lines(bundle))) + "\n"
    return manifests.dump(bundle.manifest) if as_json else "\n".join(describe(bundle)) + "\n"


def _found_inside(path: str, as_json: bool, batch: int | None) -> str:
    found = xrays(path, batch)
    if as_json:
        return to_json(found)
    return "".join(f"{_printable(line)}\n" for name, xray in found for line in layer_lines(name, xray))


def _predicted(path: str, against: str, gpu: str | None, as_json: bool, batch: int | None) -> str:
    sides = [xrays(path, batch), xrays(against, batch)]
    found = predict([xray for _, xray in sides[0]], [xray for _, xray in sides[1]], gpu)
    if as_json:
        return predictions_to_json(found)
    lines = [f"{side}  {where}" for side, where in zip("AB", (path, against), strict=True)] + [*prediction_lines(found)]
    return "".join(f"{_printable(line)}\n" for line in lines)


def describe(bundle: Bundle) -> Iterator[str]:
    """Yield the lines that tell a person what a bundle holds."""
    m = bundle.manifest
    yield _printable(m.summary)
    yield _row("model", f"{m.model.name}: {m.model.paper}")
    yield _row("weights", _weights(m))
    yield _row("precision", f"asked {m.precision.asked}; weighted layers {_counts(m.precision.realised)}")
    yield _row("inputs", ", ".join(_tensor(tensor) for tensor in m.inputs))
    yield _row("outputs", ", ".join(_tensor(tensor) for tensor in m.outputs) + f" ({m.scores})")
    yield _row("batch", f"{m.batch.min} to {m.batch.max}, usually {m.batch.opt}")
    nodes, opset, simplifier = (m.graph.get(key, "unknown") for key in ("nodes", "opset", "simplifier"))
    yield _row("graph", f"{nodes} nodes, opset {opset}, simplifier {simplifier}{_cost(m.graph)}")
    if "route" in m.graph:  # which older bundles do not record
        yield _row("route", str(m.graph["route"]))
    yield from (_row("parity", _rung(rung)) for rung in m.parity)
    for engine in m.engines:
        layers = _counts(engine.layer_types)
        yield _row("engine", f"{engine.flavour} {engine.version} for {', '.join(engine.targets)}; {layers}")
    yield from (_row("note", note) for note in m.notes)
    yield from (
        _row("file", f"{name}, {record.bytes:,} bytes, sha256 {record.sha256[:12]}…")
        for name, record in m.files.items()
    )


def _row(head: str, text: str) -> str:
    return f"  {head:<10} {_printable(text)}"


def _printable(text: str) -> str:
    """Spell control codes out: a manifest may come from a stranger, and this goes to a terminal."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in text)


def _weights(m: Manifest) -> str:
    state = "" if m.weights.trained else "UNTRAINED, "
    return f"{state}{m.weights.origin}: {m.weights.detail}" + (f"; {m.weights.licence}" if m.weights.licence else "")


def _cost(graph: Mapping[str, object]) -> str:
    """Say the multiply-adds of one image, which older bundles do not record."""
    number = graph.get("multiply_adds")
    return f", {number:,} multiply-adds an image" if isinstance(number, int) else ""


def _tensor(tensor: Tensor) -> str:
    return f"{tensor.name} {tensor.dtype} ({', '.join(str(axis) for axis in tensor.shape)})"


def _counts(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{kind} × {number}" for kind, number in counts.items()) or "none"


def _rung(rung: Rung) -> str:
    found = "bit for bit" if rung.sqnr_db is None else f"{rung.sqnr_db:.1f} dB"
    return (
        f"{rung.candidate} against {rung.reference}, batch {rung.batch}: {found} (needs {rung.required_db:.1f}), "
        f"largest difference {rung.max_abs:.3g}, cosine {rung.cosine:.7f}, top-1 {rung.top1:.0%}, top-5 {rung.top5:.0%}"
    )


if __name__ == "__main__":
    run()
