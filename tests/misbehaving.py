"""Models that an exporter may pass off as fine: each as a user would have written it, and what must become of it.

They stand in ``data/misbehaving.txt``; ``write`` makes a user's file of one, with ``make_bundle``'s inputs beside.
"""

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import dedent, indent
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float32]
MARK = "#<"
HEADER = """\
import itertools
import os
import random
import time
from collections import namedtuple
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F


"""
CLASS = """\
class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.c = nn.Conv2d(4, 4, 3, padding=1)
"""


@dataclass(frozen=True)
class Model:
    """A misbehaving model. ``reason`` is a pattern for the refusal's words, empty where the export must be right.

    ``line`` is the source line that must be named, with its number; empty where none is to blame.
    """

    group: str
    name: str
    source: str
    reason: str
    line: str
    slow: bool


def models() -> dict[str, Model]:
    """Read the catalogue."""
    text = (Path(__file__).parent / "data" / "misbehaving.txt").read_text("utf-8")
    read = [_model(entry) for entry in text.split("\n### ")[1:]]
    assert len({model.name for model in read}) == len(read)
    return {model.name: model for model in read}


def _model(entry: str) -> Model:
    title, *lines = entry.splitlines()
    group, _, name = title.partition(": ")
    parts: dict[str, str] = {}
    outcome, current = "", ""
    for line in lines:
        if line and not line.startswith(" "):
            current = line
            if line.startswith(("right", "refused")):
                outcome = line
        else:
            parts[current] = parts.get(current, "") + line + "\n"
    parts = {key: dedent(part).strip() + "\n" for key, part in parts.items()}
    marked = HEADER + (parts["whole"] if "whole" in parts else _file(parts))
    blamed = [
        f"mynet.py:{number}, in {{}}: {line.split(MARK)[0].strip()}"
        for number, line in enumerate(marked.splitlines(), 1)
        if MARK in line
    ]
    source = "\n".join(line.split("  " + MARK)[0] for line in marked.splitlines()) + "\n"
    verdict, _, reason = outcome.removesuffix(" slow").partition(": ")
    assert verdict in {"right", "refused"} and len(blamed) <= 1 and bool(reason) == (verdict == "refused"), title
    return Model(group, name, source, reason, "".join(blamed), outcome.endswith(" slow"))


def _file(parts: dict[str, str]) -> str:
    before = parts["before"] + "\n\n" if "before" in parts else ""
    forward = "\n    def forward(self, x):\n" + indent(parts["forward"], " " * 8)
    return before + CLASS + indent(parts.get("init", ""), " " * 8) + forward


def write(model: Model, folder: Path) -> Callable[[], Any]:
    """Write a model's source as ``mynet.py`` and import it from there; return what makes the module, seeded."""
    import torch

    file = folder / "mynet.py"
    file.write_text(model.source, "utf-8")
    spec = importlib.util.spec_from_file_location("mynet", file)
    assert spec and spec.loader
    code = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(code)

    def make() -> Any:
        torch.manual_seed(0)
        made = code.make() if hasattr(code, "make") else code.Net()
        return made.eval()

    return make


def samples() -> Floats:
    """Return 8 different rows of noise."""
    return np.random.default_rng(0).standard_normal((8, 4, 6, 6)).astype(np.float32)


def others() -> dict[str, Floats]:
    """Return inputs unlike the samples, 12 rows each; a constant is none of them, for a norm makes noise of it."""
    x = np.random.default_rng(1).standard_normal((12, 4, 6, 6)).astype(np.float32)
    return {
        "noise": x,
        "large": x * np.float32(30),
        "small": x * np.float32(1 / 64),
        "positive": np.abs(x),
        "negative": -np.abs(x),
    }


SIZES = (1, 2, 5, 12)


def export(module: Any, batch: tuple[int, int, int] = (1, 6, 12)) -> tuple[bytes, str]:
    """Do what export-model does with a module, up to the proven float32 graph; return it and its route."""
    from engineworks.export.parity import Yardstick, batches, check_alive
    from engineworks.export.probe import examine
    from engineworks.export.prove import export_graph, prove
    from engineworks.export.recipe import Recipe
    from engineworks.export.reference import answer, answers_by_batch
    from engineworks.runtime.manifest import Batch

    recipe = Recipe("mynet", batch=Batch(*batch), simplify="none")
    inputs = {"x": samples()}
    probes = examine(module, module, inputs, recipe.batch)
    reference = answer(module, inputs)
    check_alive(reference)
    answers = answers_by_batch(module, inputs, reference, batches(recipe.batch))
    yardstick = Yardstick(inputs, reference, answers, "logits", probes=probes)
    exported = export_graph(module, inputs, tuple(f"y{index}" for index in range(len(reference))), recipe)
    proven = prove(exported, recipe, yardstick, lambda content: None, lambda rung: None)
    return proven.content, exported.route


def worst(graph: bytes, make: Callable[[], Any], sizes: Sequence[int] = SIZES) -> tuple[float, str]:
    """Return the fewest decibels that a graph keeps of a fresh module's answers, and where; −inf for other shapes."""
    import torch
    from torch.utils._pytree import tree_leaves

    from engineworks.runtime.backend import open_session
    from engineworks.runtime.compare import sqnr

    session, found = open_session(graph, "cpu", threads=1), (np.inf, "")
    for name, rows in others().items():
        for size in sizes:
            with torch.no_grad():
                wanted = [leaf for leaf in tree_leaves(make()(torch.tensor(rows[:size]))) if leaf is not None]
            names = [f"y{index}" for index in range(len(wanted))]
            for right, got in zip(wanted, session.run({"x": rows[:size]}, names), strict=True):
                expected, given = right.detach().numpy(), np.asarray(got)
                same = (expected.shape, expected.dtype) == (given.shape, given.dtype)
                finite = same and np.isfinite(expected).all()
                kept = sqnr(expected.astype(np.float64), given.astype(np.float64)) if finite else -np.inf
                if same and np.array_equal(expected, given, equal_nan=expected.dtype.kind == "f"):
                    kept = np.inf
                found = min(found, (kept, f"{name}, batch {size}"))
    return found
