"""``report.html``: what a bundle proves, as one page that needs no network and no script.

It is written from the bundle's own files, so it says nothing that they do not; every text in it is escaped.
"""

import base64
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from importlib.resources import files as resources
from string import Template
from typing import Any

import numpy as np
import numpy.typing as npt

from engineworks.export.report_plots import decibels, histogram_plot, layers_plot
from engineworks.runtime.bundle import CALIBRATION, GRAPH, LAYERS, REFERENCE
from engineworks.runtime.compare import order
from engineworks.runtime.graph_layers import PRODUCTS, read_layers
from engineworks.runtime.manifest import Manifest, Rung
from engineworks.runtime.preprocessing import Preprocessing

Array = npt.NDArray[Any]
_PICTURE = 144  # pixels of a sample's longer side
_TOP = 5
_LEVELS = 127


def report(manifest: Manifest, files: Mapping[str, bytes], answers: Sequence[Array] = ()) -> bytes:
    """Write the page.

    Args:
        manifest: of the bundle.
        files: its files by name; those that it lacks leave their part away.
        answers: what the graph that ships answers to the first samples, output by output; empty where not kept.
    """
    parts = [
        *_heading(manifest),
        *_ladder(manifest.parity),
        *_layers(files),
        *_precision(manifest, files),
        *_calibration(files),
        *_samples(manifest, files, answers),
        *_latency(),
        *_provenance(manifest),
    ]
    page = Template((resources(__package__) / "report.html").read_text("utf-8"))
    return page.substitute(title=escape(manifest.name), body="\n".join(parts)).encode()


def _heading(manifest: Manifest) -> Iterator[str]:
    yield f"<h1>{escape(manifest.name)}</h1>"
    yield f'<p class="quiet">{escape(manifest.model.name)}: {escape(manifest.model.paper or manifest.model.family)}</p>'
    if not manifest.weights.trained:
        yield '<p class="bad"><b>UNTRAINED weights</b>: its answers mean nothing. It is for building and timing.</p>'
    worst = min(manifest.parity, key=_slack, default=None)
    facts = {
        "precision": manifest.precision.asked,
        "parameters": f"{manifest.model.parameters:,}",
        "multiply-adds": f"{manifest.graph.get('multiply_adds') or 0:,}",
        "batch": f"{manifest.batch.min} : {manifest.batch.opt} : {manifest.batch.max}",
        "comparisons passed": str(len(manifest.parity)),
        "nearest to its limit": "–" if worst is None else f"{_slack(worst):.1f} dB above",
    }
    yield (
        '<div class="facts">'
        + "".join(
            f'<div><span class="quiet">{name}</span><b>{escape(value)}</b></div>' for name, value in facts.items()
        )
        + "</div>"
    )
    for note in manifest.notes:
        yield f'<p class="warn">{escape(note)}</p>'


def _slack(rung: Rung) -> float:
    return (float("inf") if rung.sqnr_db is None else rung.sqnr_db) - rung.required_db


def _table(head: Sequence[str], rows: Sequence[Sequence[str]], numbers: int) -> str:
    """Write a table whose last ``numbers`` columns are numbers; the cells are HTML already."""
    kinds = [""] * (len(head) - numbers) + [' class="n"'] * numbers
    top = "".join(f"<th{kind}>{name}</th>" for name, kind in zip(head, kinds, strict=True))
    body = "".join(
        "<tr>" + "".join(f"<td{kind}>{cell}</td>" for cell, kind in zip(row, kinds, strict=True)) + "</tr>"
        for row in rows
    )
    return f'<div class="wide"><table><tr>{top}</tr>{body}</table></div>'


def _ladder(rungs: Sequence[Rung]) -> Iterator[str]:
    yield "<h2>The ladder</h2><p>Each graph beside the original. What is needed comes of the network's own noise.</p>"
    head = ("graph", "output", "batch", "reached", "needed", "largest difference", "cosine", "top-1", "top-5")
    rows = [
        (
            escape(rung.candidate), escape(rung.output), str(rung.batch),
            f'<span class="good">{decibels(rung.sqnr_db)}</span>', decibels(rung.required_db), f"{rung.max_abs:.3g}",
            f"{rung.cosine:.6f}", f"{rung.top1:.1%}", f"{rung.top5:.1%}",
        )
        for rung in rungs
    ]  # fmt: skip
    yield _table(head, rows, 7)
    words = dict.fromkeys(f"{rung.candidate}: {rung.floor}" for rung in rungs)
    yield f'<p class="quiet">{escape("; ".join(words))}; one bit less is allowed.</p>'


def _layers(files: Mapping[str, bytes]) -> Iterator[str]:
    yield "<h2>Layer by layer</h2>"
    if LAYERS not in files:
        yield '<p class="quiet">Not looked at: <code>export-model --layers</code> holds each to PyTorch\'s own.</p>'
        return
    layers = json.loads(files[LAYERS])
    yield "<p>Decibels of every value: the line behind all layers before it, the dots each layer alone.</p>"
    yield f'<div class="wide plot">{layers_plot(layers)}</div>'
    rows = [
        (
            escape(layer["module"] or "–"), f"<code>{escape(layer['value'])}</code>", decibels(layer["db"]),
            decibels(layer["alone_db"]), f"{layer['channel']} of {layer['channels']}", decibels(layer["channel_db"]),
            f"{layer['excess']:.2g}" if layer["excess"] is not None else "–",
        )
        for layer in layers
    ]  # fmt: skip
    head = ("module", "value", "behind all", "alone", "worst channel", "keeps", "of what rounding explains")
    yield f"<details><summary>all {len(layers)} values</summary>{_table(head, rows, 5)}</details>"


def _precision(manifest: Manifest, files: Mapping[str, bytes]) -> Iterator[str]:
    yield "<h2>Precision</h2>"
    rows = [(f"graph: {escape(kind)}", str(count)) for kind, count in manifest.precision.realised.items()]
    for engine in manifest.engines:
        made = f"{engine.flavour} {engine.version}"
        rows += [(escape(f"{made}: {kind}"), str(count)) for kind, count in engine.layer_types.items()]
    yield _table(("layers that compute in", "how many"), rows, 1)
    if GRAPH in files:
        weighted = [layer for layer in read_layers(files[GRAPH]) if layer.operator in PRODUCTS]
        cells = [(escape(one.module or "–"), f"<code>{escape(one.name)}</code>", escape(one.asked)) for one in weighted]
        table = _table(("module", "layer", "computes in"), cells, 0)
        yield f"<details><summary>the graph's {len(cells)} weighted layers</summary>{table}</details>"
    for engine in manifest.engines:
        words = f"{engine.flavour} {engine.version} for {', '.join(engine.targets)}"
        yield f'<p class="quiet">{escape(words)}</p>'
    if not manifest.engines:
        yield '<p class="quiet">No engine is in this bundle.</p>'


def _calibration(files: Mapping[str, bytes]) -> Iterator[str]:
    if CALIBRATION not in files:
        return
    found = json.loads(files[CALIBRATION])
    seen = f"{found['count']} images observed ({escape(found['description'])})"
    yield f"<h2>INT8</h2><p>{seen}; {escape(found['chosen'])} ranges.</p>"
    steps = [
        (escape(step["name"]), decibels(step["sqnr_db"]), decibels(step["typical_db"]), f"{step['top1']:.1%}")
        for step in found["steps"]
    ]
    yield _table(("step, measured on held-out images", "all answers", "a typical answer", "top-1"), steps, 3)
    for layer, why in found["left"].items():
        yield f'<p class="warn">{escape(layer)} stays in the float type: {escape(why)}</p>'
    quantised = {decision["tensor"] for decision in found["decisions"] if decision["quantised"]}
    shown = {name: tensor for name, tensor in found["tensors"].items() if tensor.get("counts") and name in quantised}
    if not shown:
        return
    figures = "".join(_histogram(name, tensor, found["chosen"]) for name, tensor in shown.items())
    yield (
        f"<details open><summary>what {len(shown)} tensors hold, and where int8 ends (red)</summary>"
        f'<p class="quiet">Magnitudes, counted on a logarithmic scale; exact zeros are left out.</p>'
        f'<div class="grid">{figures}</div></details>'
    )


def _histogram(name: str, tensor: Mapping[str, Any], method: str) -> str:
    """Draw one tensor; a shifted one has smaller steps, and its 255 end where 127 of the range's would."""
    end = tensor["candidates"].get(method, tensor["scale"]) * _LEVELS
    largest = max(abs(tensor["minimum"]), abs(tensor["maximum"]))
    words = f"<code>{escape(name)}</code> ends at {end:.3g}, seen up to {largest:.3g}"
    return f"<figure>{histogram_plot(tensor['counts'], tensor['end'], end)}<figcaption>{words}</figcaption></figure>"


def _samples(manifest: Manifest, files: Mapping[str, bytes], answers: Sequence[Array]) -> Iterator[str]:
    """Show each sample with the original's first classes and the graph's."""
    if REFERENCE not in files or not answers or len(manifest.outputs) != 1 or answers[0].ndim != 2:
        return
    with np.load(io.BytesIO(files[REFERENCE]), allow_pickle=False) as stored:
        inputs, right = stored[f"input:{manifest.inputs[0].name}"], stored[f"output:{manifest.outputs[0].name}"]
    before, after = (order(scores, manifest.scores)[:, :_TOP] for scores in (right, answers[0]))
    pictures = _pictures(inputs, manifest.preprocessing)
    yield '<h2>Samples</h2><p>First classes of the original, and of the graph that ships.</p><div class="grid">'
    for index in range(min(len(before), len(after))):
        image = f'<img alt="sample {index + 1}" src="{pictures[index]}">' if pictures else ""
        rows = [
            (_class(int(one), manifest.labels), _class(int(other), manifest.labels, one != other))
            for one, other in zip(before[index], after[index], strict=True)
        ]
        yield f"<figure>{image}<figcaption>{_table(('original', 'graph'), rows, 0)}</figcaption></figure>"
    yield "</div>"


def _class(index: int, labels: Sequence[str], other: bool = False) -> str:
    name = escape(labels[index].split(",")[0]) if index < len(labels) else str(index)
    return f'<span class="warn">{name}</span>' if other else name


def _pictures(inputs: Array, preprocessing: Mapping[str, Any] | None) -> list[str]:
    """Turn prepared pictures back into such as can be seen; nothing where the inputs are none."""
    if preprocessing is None or inputs.ndim != 4:
        return []
    recipe = Preprocessing.from_json(preprocessing)
    if not recipe.in_graph:
        mean, std = (np.array(values, np.float64)[:, None, None] for values in (recipe.mean, recipe.std))
        inputs = np.rint((inputs * std + mean) * 255).clip(0, 255).transpose(0, 2, 3, 1)
    return [_encoded(picture.astype(np.uint8)) for picture in inputs]


def _encoded(picture: Array) -> str:
    from PIL import Image

    image = Image.fromarray(picture[..., 0] if picture.shape[-1] == 1 else picture)
    if max(image.size) > _PICTURE:
        image.thumbnail((_PICTURE, _PICTURE))
    stream = io.BytesIO()
    small = image.width * image.height <= 64 * 64
    image.save(stream, "PNG" if small else "JPEG", **({} if small else {"quality": 80}))
    kind = "png" if small else "jpeg"
    return f"data:image/{kind};base64,{base64.b64encode(stream.getvalue()).decode()}"


def _latency() -> Iterator[str]:
    yield "<h2>Latency</h2>"
    yield '<p class="quiet">Not measured at export: <code>bench-model</code> does, on the host that it tells of.</p>'


def _provenance(manifest: Manifest) -> Iterator[str]:
    yield "<h2>Provenance</h2>"
    weights = manifest.weights
    rows = [
        ("weights", escape(f"{weights.origin}: {weights.detail}")),
        ("weights' sha256", f"<code>{escape(weights.sha256 or '–')}</code>"),
        ("exported by", escape(str(manifest.graph.get("route", "–")))),
        *((escape(name), escape(version)) for name, version in manifest.tools.items()),
    ]
    yield _table(("what", "which"), rows, 0)
    asked = "".join(f"{escape(name)} = {escape(str(value))}<br>" for name, value in sorted(manifest.recipe.items()))
    yield f"<details><summary>what was asked for</summary><p><code>{asked}</code></p></details>"
