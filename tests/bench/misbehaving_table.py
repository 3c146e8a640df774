"""The list of misbehaving models and what each got: torch.onnx.export beside this project, as a Markdown table.

    python tests/bench/misbehaving_table.py [--ours] [GROUP or NAME…]

``torch.onnx.export(dynamo=True)`` is given each module with a free batch, as its documentation says; what it exports is
run in ONNX Runtime at batches 1, 2, 5 and 12, on inputs that neither exporter has seen. ``--ours`` leaves it
away, which takes a fifth of the time.
"""

import contextlib
import io
import logging
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))
import misbehaving  # type: ignore[import-not-found]

RIGHT_DB = 80.0


def first_line(error: BaseException) -> str:
    """Return the innermost cause's class and first line."""
    while error.__cause__ is not None:
        error = error.__cause__
    text = (str(error).strip() or "no words").splitlines()[0]
    return f"{type(error).__name__}: {text}"[:90]


def stock(make: Callable[[], Any]) -> str:
    """Say what torch.onnx.export does, and how far its graph is off."""
    import torch

    x = torch.from_numpy(misbehaving.samples()[:2])
    batch = torch.export.Dim("batch", min=1, max=12)
    try:
        with torch.no_grad():
            outputs = len(torch.utils._pytree.tree_leaves(make()(x.clone())))
        program = torch.onnx.export(
            make(), (x,), dynamo=True, dynamic_shapes=({0: batch},), input_names=["x"], verbose=False,
            output_names=[f"y{index}" for index in range(outputs)],
        )  # fmt: skip
        assert program is not None
        graph = program.model_proto.SerializeToString()
    except Exception as error:  # whatever it raises is what the table is about
        return f"fails: {first_line(error)}"
    errors = []
    for size in misbehaving.SIZES:
        errors.append(off(graph, make, size))
    return "exports; " + " / ".join(errors)


def off(graph: bytes, make: Callable[[], Any], size: int) -> str:
    """Return the largest relative error at one batch size over all inputs, or that it fails."""
    import torch

    from engineworks.runtime.backend import open_session

    largest = 0.0
    try:
        session = open_session(graph, "cpu", threads=1)
        for rows in misbehaving.others().values():
            with torch.no_grad():
                leaves = torch.utils._pytree.tree_leaves(make()(torch.tensor(rows[:size])))
            right = [np.asarray(leaf.detach()) for leaf in leaves if isinstance(leaf, torch.Tensor)]
            got = session.run({"x": rows[:size]}, [f"y{index}" for index in range(len(right))])
            for expected, given in zip(right, got, strict=True):
                if expected.shape != np.asarray(given).shape:
                    return "**other shape**"
                if not np.array_equal(expected, given, equal_nan=expected.dtype.kind == "f"):
                    peak = float(np.abs(expected.astype(np.float64)).max()) or 1.0
                    apart = np.abs(expected.astype(np.float64) - np.asarray(given, np.float64)).max()
                    largest = max(largest, float(apart) / peak)
    except Exception:  # of ONNX Runtime, or of the module at this size
        return "**error**"
    return f"{largest:.0e}" if largest < 1e-3 else f"**{largest:.2g}**"


def ours(make: Callable[[], Any]) -> str:
    """Say what this project does with it."""
    from engineworks.runtime.errors import ExportError

    try:
        graph, route = misbehaving.export(make())
    except ExportError as error:
        return f"refused: {error}"
    kept, where = misbehaving.worst(graph, make)
    return f"right ({route.split(' (')[0]})" if kept > RIGHT_DB else f"**WRONG**: {kept:.0f} dB at {where}"


def main() -> None:
    """Print the table."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    alone, chosen = "--ours" in sys.argv, {*sys.argv[1:]} - {"--ours"}
    if alone:
        print("| model | engineworks |\n|---|---|")
    else:
        print("| model | torch.onnx.export; error at batch 1 / 2 / 5 / 12 | engineworks |\n|---|---|---|")
    for model in misbehaving.models().values():
        if chosen and not {model.group, model.name} & chosen:
            continue
        with tempfile.TemporaryDirectory() as folder:
            silent = io.StringIO()
            with contextlib.redirect_stdout(silent), contextlib.redirect_stderr(silent):
                make = misbehaving.write(model, Path(folder))
                cells = [f"{model.group}: {model.name}", *([] if alone else [stock(make)]), ours(make)]
        print("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |", flush=True)


if __name__ == "__main__":
    main()
