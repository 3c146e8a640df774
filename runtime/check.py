"""The command ``check-model``: parity again on this host, backend by backend, without PyTorch.

The onnx package installs a script of the same name; ``python -m engineworks.runtime.check`` is always this one.
"""

import json
import math
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

import click

from engineworks.runtime.against import Against, check_against
from engineworks.runtime.bundle import Bundle, open_bundle
from engineworks.runtime.command import DeviceType, leave, status_of
from engineworks.runtime.layers import as_record, check_layers, layer_lines
from engineworks.runtime.parity import Checked, check_bundle


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(argv: list[str] | None = None) -> int:
    """Run ``check-model`` with these arguments (default: the process's own); return its exit status."""
    return status_of(_command, "check-model", argv)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.argument("path", metavar="BUNDLE")
@click.option("--device", type=DeviceType(), default="auto", show_default=True, help="Where; auto: wherever it runs.")
@click.option("--against", metavar="OTHER", help="Compare with another bundle of the same network instead.")
@click.option("--layers", is_flag=True, help="Compare every layer of the graph (a bundle made with --layers) instead.")
@click.option("--json", "as_json", is_flag=True, help="Print every figure for programs.")
def _command(path: str, device: Any, against: str | None, layers: bool, as_json: bool) -> int:
    """Compare BUNDLE on this host with the original's stored answers; exit 1 where it does not agree.

    Each backend that runs here answers the stored inputs at the smallest, usual and largest batch, and is held against
    itself too: rows in another order, alike, beside others, or one by one must get the same answers.
    """
    bundle = open_bundle(path)
    bundle.verify()
    if against is not None and layers:
        raise click.UsageError("--against and --layers are two comparisons; ask for one.")
    if layers:
        return _layers(bundle, device, as_json)
    if against is not None:
        return _against(bundle, against, device, as_json)
    found: list[Checked] = []
    if not as_json:
        for line in recorded_lines(bundle):
            click.echo(line)
    for checked in check_bundle(bundle, device):
        found.append(checked)
        if not as_json:
            for line in lines(checked):
                click.echo(line)
    passed = all(checked.passed for checked in found)
    if as_json:
        backends = [asdict(checked) | {"passed": checked.passed} for checked in found]
        click.echo(
            json.dumps(_finite({"bundle": bundle.manifest.name, "passed": passed, "backends": backends}), indent=2)
        )
    return int(not passed)


def recorded_lines(bundle: Bundle) -> Iterator[str]:
    """Yield the rungs that were compared when the bundle was made, at the usual batch: what stands before these."""
    for rung in bundle.manifest.parity:
        if rung.batch == bundle.manifest.batch.opt:
            figure = math.inf if rung.sqnr_db is None else rung.sqnr_db
            yield (
                f"{'when it was made':<18} {rung.candidate} against {rung.reference}: {rung.output}, batch "
                f"{rung.batch}: {_db(figure)} (needs {rung.required_db:.1f}), top-1 {rung.top1:.0%}"
            )


def _layers(bundle: Bundle, device: Any, as_json: bool) -> int:
    found = []
    for one in check_layers(bundle, device):
        found.append(one)
        if not as_json:
            for line in layer_lines(one):
                click.echo(line)
    ran = [one for one in found if not one.problem]
    passed = bool(ran) and all(one.wrong is None for one in ran)
    if as_json:
        record = {"bundle": bundle.manifest.name, "passed": passed, "backends": [as_record(one) for one in found]}
        click.echo(json.dumps(_finite(record), indent=2))
    return int(not passed)


def _against(bundle: Bundle, path: str, device: Any, as_json: bool) -> int:
    other = open_bundle(path)
    other.verify()
    found = check_against(bundle, other, device)
    if as_json:
        names = {"bundle": bundle.manifest.name, "against": other.manifest.name, "passed": found.passed}
        click.echo(json.dumps(_finite(names | asdict(found)), indent=2))
    else:
        for line in against_lines(found, (bundle.manifest.summary, other.manifest.summary)):
            click.echo(line)
    return int(not found.passed)


def against_lines(found: Against, names: tuple[str, str]) -> Iterator[str]:
    """Yield what a person reads of two bundles."""
    yield f"{names[0]} on {found.backends[0]} against {names[1]} on {found.backends[1]}; inputs of {found.inputs_of}"
    for pair in found.pairs:
        for name, figures in zip(names, pair.originals, strict=True):
            yield f"  {pair.output}: {name} against the original: {_db(figures.sqnr_db)}, top-1 {figures.top1:.0%}"
        figures, state, needs = pair.figures, "compared", "of other weights: nothing is required"
        if pair.required_db is not None:
            state, needs = "agrees" if pair.passed else "FAILS", f"needs {pair.required_db:.1f}"
        yield (
            f"  {pair.output} {state}: the two on {pair.rows} rows: {_db(figures.sqnr_db)} ({needs}), largest "
            f"difference {figures.max_abs:.3g}, top-1 {figures.top1:.0%}"
        )
        yield from (f"    {flip}" for flip in pair.flips)


def lines(checked: Checked) -> Iterator[str]:
    """Yield what a person reads of one backend."""
    if checked.problem:
        yield f"{checked.backend:<18} not run: {checked.problem}"
        return
    for one in checked.compared:
        figures, state = one.figures, "agrees" if one.passed else "FAILS"
        yield (
            f"{checked.backend:<18} {state}: {one.output}, batch {one.batch}: {_db(figures.sqnr_db)} (needs "
            f"{one.required_db:.1f}), largest difference {figures.max_abs:.3g}, top-1 {figures.top1:.0%}"
        )
        yield from (f"{'':<18}   {flip}" for flip in one.flips)
    for step in checked.steps:
        yield (
            f"{checked.backend:<18} against {step.before}: {step.output}, batch {step.batch}: "
            f"{_db(step.figures.sqnr_db)}, largest difference {step.figures.max_abs:.3g}, top-1 {step.figures.top1:.0%}"
        )
    for relation in checked.relations:
        state = "holds" if relation.sqnr_db >= checked.required_db else "FAILS"
        yield (
            f"{checked.backend:<18} {relation.name} {state}: {_db(relation.sqnr_db)} (needs {checked.required_db:.1f})"
        )


def _db(value: float) -> str:
    return "equal, bit for bit" if value == math.inf else f"{value:.1f} dB"


def _finite(value: Any) -> Any:
    """Write what JSON has no number for as null."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


if __name__ == "__main__":
    run()
