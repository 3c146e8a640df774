"""The reference networks as a table and as JSON, from the registry alone: neither torch nor numpy is imported."""

import json
from typing import Any

from engineworks.models import NETWORKS, Network

_HEADS = ("network", "family", "parameters", "multiply-adds", "top-1", "weights", "paper")
_NUMBERS = (2, 3, 4)  # columns that line up on the right


def as_table() -> str:
    """Lay the networks out for a person, one a line under a line of heads."""
    rows = [_HEADS, *(_row(network) for network in NETWORKS.values())]
    widths = [max(len(cell) for cell in column) for column in zip(*rows, strict=True)]
    return "\n".join(_line(row, widths) for row in rows)


def as_json() -> str:
    """Write the networks as a JSON array of objects, in the table's order; what does not exist is null."""
    return json.dumps([_record(network) for network in NETWORKS.values()], indent=2)


def _record(network: Network) -> dict[str, Any]:
    published = network.published
    return {
        "name": network.name,
        "family": network.family,
        "parameters": network.parameters,
        "multiply_adds": network.multiply_adds,
        "top1": published.top1 if published else None,
        "weights": _weights(network),
        "paper": network.paper,
    }


def _weights(network: Network) -> str | None:
    """Say where weights come from: with the package, or by ``--weights imagenet``."""
    return "shipped" if network.shipped else "imagenet" if network.published else None


def _row(network: Network) -> tuple[str, ...]:
    record = _record(network)
    top1 = "-" if record["top1"] is None else f"{record['top1']:.2f} %"
    figures = (_count(network.parameters), _count(network.multiply_adds), top1)
    return network.name, network.family, *figures, record["weights"] or "none", network.paper


def _count(number: int) -> str:
    """Write a count as people do, three or four digits and a letter: ``6.62 M``."""
    for size, letter in ((1e9, "G"), (1e6, "M")):
        if number >= size:
            return f"{number / size:.2f} {letter}"
    return f"{number / 1e3:.1f} k"


def _line(row: tuple[str, ...], widths: list[int]) -> str:
    padded = zip(row[:-1], widths, strict=False)
    cells = (cell.rjust(width) if i in _NUMBERS else cell.ljust(width) for i, (cell, width) in enumerate(padded))
    return "  ".join((*cells, row[-1]))
