"""Why an INT8 bundle's tensors are quantised or not: the decisions that calibration.json keeps, rule by rule."""

import json
from collections.abc import Iterator
from typing import Any

from engineworks.runtime.bundle import CALIBRATION, Bundle
from engineworks.runtime.errors import BundleError


def why_lines(bundle: Bundle) -> Iterator[str]:
    """Yield how the scales were chosen, then each decision: node, tensor, quantised or not, the rule, and why.

    Raises:
        BundleError: the bundle is not INT8, or its calibration.json is not what export-model writes.
    """
    if CALIBRATION not in bundle.manifest.files:
        asked = bundle.manifest.precision.asked
        raise BundleError(f"bundle {bundle.path.name}: --why tells of INT8; this bundle is {asked}.")
    content = json.loads(bundle.read(CALIBRATION))
    try:
        yield from _lines(content)
    except (KeyError, TypeError) as error:
        raise BundleError(f"bundle {bundle.path.name}: {CALIBRATION} lacks or mistypes a field: {error!s}.") from error


def _lines(content: dict[str, Any]) -> Iterator[str]:
    asked, chosen = content["method"], content["chosen"]
    ranges = f"{chosen} ranges" + (f", chosen by {asked}" if asked != chosen else "")
    yield f"calibrated on {content['count']} images ({content['description']}): {ranges}"
    for step in content["steps"]:
        yield f"  {step['sqnr_db']:5.1f} dB, top-1 {step['top1']:.0%}  {step['name']}"
    if content.get("budget") is not None:  # which older bundles do not record
        yield from _budget_lines(content["budget"])
    scales = {name: tensor["scale"] for name, tensor in content["tensors"].items()}
    left = content["left"]
    for decision in content["decisions"]:
        state = "int8 " if decision["quantised"] else "float"
        scale = scales.get(decision["tensor"]) if decision["quantised"] and decision["role"] != "weight" else None
        shown = "" if scale is None else f" (scale {scale:.6g})"
        why = left.get(decision["node"], decision["why"]) if decision["rule"] == "left out" else decision["why"]
        yield (
            f"  {state}  {decision['node']}: {decision['role']} {decision['tensor']}{shown}  [{decision['rule']}] {why}"
        )


def _budget_lines(budget: dict[str, Any]) -> Iterator[str]:
    labels = budget["judged_by"] == "labels"
    right = f", float32 right on {budget['float32_right']:,}" if labels else ""
    yield (
        f"accuracy budget: {budget['allowed_points']:g} points at most, judged on {budget['pictures']:,} pictures "
        f"({budget['data']}){right}; {len(budget['trials'])} evaluations of at most {budget['most_evaluations']}"
        + (", then stopped" if budget["stopped"] else "")
    )
    for trial in budget["trials"]:
        yield f"  {trial['left_out']} of {budget['layers']} layers left out: {_drop(trial, labels)}"
    yield f"  as it ships, {budget['left_out']} left out: {_drop(budget['shipped'], labels)}"
    if "cpu" in budget:
        state = "kept" if budget["cpu"]["kept"] else "left away"
        yield f"  the graph for CPUs, {state}: {_drop(budget['cpu'], labels)}"


def _drop(trial: dict[str, Any], labels: bool) -> str:
    counts = f"{trial['lost']:,} lost, {trial['gained']:,} gained" if labels else f"{trial['lost']:,} otherwise"
    return f"{trial['points']:.2f} points (95 %: {trial['low']:.2f} to {trial['high']:.2f}), {counts}"
