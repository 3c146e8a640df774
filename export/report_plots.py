"""The pictures of a report: drawn as SVG, from numbers alone."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

_WIDE, _HIGH = 720, 240  # of the plot of layers, in its own units
_LEFT, _BELOW = 34, 20
_MOST_DB = 150.0


def layers_plot(layers: Sequence[Mapping[str, Any]]) -> str:
    """Draw the decibels of every value: a line behind all layers before it, a dot for the layer alone.

    Args:
        layers: of ``layers.json``; ``db`` and ``alone_db`` are null where nothing differs.
    """
    top = min(max((_height(layer[key]) for layer in layers for key in ("db", "alone_db")), default=1.0) + 5, _MOST_DB)
    step = (_WIDE - _LEFT - 6) / max(len(layers) - 1, 1)

    def at(index: int, value: float | None) -> tuple[float, float]:
        share = min(_height(value), top) / top
        return round(_LEFT + index * step, 1), round((_HIGH - _BELOW) * (1 - share) + 4, 1)

    points = " ".join("{},{}".format(*at(index, layer["db"])) for index, layer in enumerate(layers))
    dots = "".join(_dot(at(index, layer["alone_db"]), layer) for index, layer in enumerate(layers))
    lines = "".join(_level(decibels, at(0, decibels)[1]) for decibels in range(0, int(top) + 1, 20))
    return (
        f'<svg viewBox="0 0 {_WIDE} {_HIGH}" role="img" aria-label="decibels of every layer">{lines}'
        f'<polyline class="line" points="{points}"/>{dots}'
        f'<text x="{_LEFT}" y="{_HIGH - 3}">first layer</text>'
        f'<text x="{_WIDE - 6}" y="{_HIGH - 3}" text-anchor="end">last layer</text></svg>'
    )


def _height(value: float | None) -> float:
    return _MOST_DB if value is None else max(value, 0.0)


def _dot(place: tuple[float, float], layer: Mapping[str, Any]) -> str:
    name = escape(f"{layer['module'] or layer['value']}: {decibels(layer['db'])}, alone {decibels(layer['alone_db'])}")
    return f'<circle class="dot" cx="{place[0]}" cy="{place[1]}" r="2.6"><title>{name}</title></circle>'


def _level(value: int, y: float) -> str:
    return (
        f'<line class="axis" x1="{_LEFT}" x2="{_WIDE - 6}" y1="{y}" y2="{y}"/>'
        f'<text x="{_LEFT - 5}" y="{y + 4}" text-anchor="end">{value}</text>'
    )


def decibels(value: float | None) -> str:
    """Write decibels; None is a difference of nothing."""
    return "equal" if value is None else f"{value:.1f} dB"


def histogram_plot(counts: Sequence[int], end: float, threshold: float) -> str:
    """Draw how often each magnitude occurs, on a logarithmic scale, and where the grid of int8 ends.

    Args:
        counts: of equal bins from 0 to ``end``.
        end: where the last bin ends.
        threshold: the largest magnitude that int8 holds.
    """
    last = max((index for index, count in enumerate(counts) if count), default=0) + 1
    shown = max(end * last / max(len(counts), 1), threshold * 1.05, 1e-30)
    wide, high = 220, 80
    most = math.log1p(max(counts, default=1)) or 1.0
    step = wide * (end / max(len(counts), 1)) / shown
    bars = "".join(
        f'<rect class="bar" x="{index * step:.1f}" y="{high * (1 - math.log1p(count) / most):.1f}" '
        f'width="{max(step - 0.4, 0.4):.1f}" height="{high * math.log1p(count) / most:.1f}"/>'
        for index, count in enumerate(counts[:last])
        if count
    )
    cut = wide * threshold / shown
    return (
        f'<svg viewBox="0 0 {wide} {high + 16}" role="img" aria-label="histogram of magnitudes">{bars}'
        f'<line class="cut" x1="{cut:.1f}" x2="{cut:.1f}" y1="0" y2="{high}"/>'
        f'<line class="axis" x1="0" x2="{wide}" y1="{high}" y2="{high}"/>'
        f'<text x="0" y="{high + 13}">0</text>'
        f'<text x="{wide}" y="{high + 13}" text-anchor="end">{shown:.3g}</text></svg>'
    )
