"""The command ``export-model``: flags in, a bundle's path out.

The path, or ``--json``'s manifest, goes to stdout; all talk goes to stderr. Exit status: 0 done, 1 a known failure
(one line), 2 wrong usage, 130 interrupted.
"""

import contextlib
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from engineworks.export.recipe import Recipe

_PRECISIONS = ("fp32", "fp16", "bf16", "int8")
_AS_THEY_ARE = (
    "model", "weights", "engine", "simplify", "route", "interpolation", "labels", "samples", "trust", "calib_data",
    "calib_images", "calib_method", "calib_cache", "quality", "int8_rest", "data", "layers",
)  # fmt: skip


def run() -> None:
    """Run the command and leave without tearing torch down, which takes a third of a second."""
    import gc

    gc.disable()  # one short job: collecting the garbage of importing torch costs a tenth of a second
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # or torch's idle threads spin: thrice the time on a busy host
    _keep_stdout()
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def _keep_stdout() -> None:
    """Keep stdout for the result: what native code and the user's own processes print there goes to stderr."""
    with contextlib.suppress(OSError):  # one of the two is closed
        own = os.fdopen(os.dup(1), "w", encoding=sys.stdout.encoding, errors=sys.stdout.errors)
        os.dup2(2, 1)
        sys.stdout = own


def main(argv: list[str] | None = None) -> int:
    """Run ``export-model`` with these arguments (default: the process's own); return its exit status."""
    try:
        status = _command.main(args=argv, prog_name="export-model", standalone_mode=False)
    except click.UsageError as error:
        error.show()
        return 2
    except (click.Abort, KeyboardInterrupt):
        click.echo("export-model: interrupted; no half-written bundle was left behind.", err=True)
        return 130
    return int(status or 0)


@click.command(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.argument("model", required=False)
@click.option("-o", "--out", metavar="DIR", help="The bundle's folder; default MODEL-PRECISION here.")
@click.option("--fp32", is_flag=True, help="Keep float32 (default).")
@click.option("--fp16", is_flag=True, help="Cast to FP16; inputs and outputs stay float32.")
@click.option("--bf16", is_flag=True, help="Cast to BF16; inputs and outputs stay float32.")
@click.option("--int8", is_flag=True, help="Quantise to INT8, by the images of --calib-data.")
@click.option("--weights", metavar="FILE|imagenet", help="A .safetensors or .pth file, or the published weights.")
@click.option(
    "--batch", metavar="MIN:OPT:MAX", default="1:8:32", show_default=True, help="Batch sizes to prove and build."
)
@click.option(
    "--input",
    "input_",
    type=click.Choice(["float32", "uint8"]),
    default="float32",
    show_default=True,
    help="uint8: take (N, H, W, C) pictures; the graph normalises.",
)
@click.option(
    "--shape",
    "shapes",
    metavar="[NAME:]SIZES[:DTYPE]",
    multiple=True,
    help="An input, without the batch: 3x224x224, ids:12:int64. Repeat it for several.",
)
@click.option("--model-arg", "model_args", metavar="KEY=VALUE", multiple=True, help="For the factory; repeat it.")
@click.option("--mean", metavar="R,G,B", help="Taken off pictures scaled to 0 … 1.")
@click.option("--std", metavar="R,G,B", help="What they are divided by then.")
@click.option("--resize", metavar="PIXELS|HxW", help="Length of a picture's shorter side, or both, before the crop.")
@click.option("--interpolation", type=click.Choice(["bilinear", "bicubic", "nearest", "lanczos"]))
@click.option("--labels", metavar="FILE", help="Class names, one a line.")
@click.option("--samples", metavar="FILE.npz", help="Inputs to compare on, by name; default pictures of our own.")
@click.option("--trust", is_flag=True, help="Load a .pt2 file, which holds a pickle.")
@click.option(
    "--route",
    type=click.Choice(["auto", "fx", "dynamo"]),
    default="auto",
    show_default=True,
    help="Out of PyTorch by our translation (fx), or by torch's exporter (dynamo).",
)
@click.option("--engine", type=click.Choice(["auto", "tensorrt", "rtx", "none"]), default="auto", show_default=True)
@click.option("--target", metavar="SM,…", help="GPUs for the RTX engine, such as sm86,sm89; default all it supports.")
@click.option("--opset", type=click.IntRange(18, 23), help="ONNX operator set; default 20, or 22 for --bf16.")
@click.option(
    "--simplify", type=click.Choice(["auto", "onnxsim", "onnxslim", "none"]), default="auto", show_default=True
)
@click.option("--calib-data", metavar="DATA", help="Folder, .txt list, .npz, .npy, module:factory, or synthetic.")
@click.option("--calib-images", type=click.IntRange(8), default=128, show_default=True, help="How many are taken.")
@click.option(
    "--calib-method",
    type=click.Choice(["auto", "minmax", "percentile", "mse", "entropy"]),
    default="auto",
    show_default=True,
    help="How ranges are chosen; auto takes what answers best.",
)
@click.option("--calib-cache", metavar="FILE", help="Keep what was observed, and use it again where it still fits.")
@click.option(
    "--quality",
    type=click.Choice(["fast", "normal", "high"]),
    default="normal",
    show_default=True,
    help="How far INT8's errors are corrected; high pads before some layers.",
)
@click.option("--fp16-share", metavar="SHARE", default="1%", show_default=True, help="Multiply-adds kept from INT8.")
@click.option(
    "--int8-rest", type=click.Choice(["fp16", "fp32"]), default="fp16", show_default=True, help="What is not INT8."
)
@click.option("--max-drop", metavar="POINTS", help="Of top-1 that INT8 may lose, 95 % sure; keeps layers from INT8.")
@click.option(
    "--data", metavar="DATA", help="Labelled pictures for it: class folders or a list; else agreement serves."
)
@click.option("--layers", is_flag=True, help="Hold every layer against PyTorch's, not the outputs alone.")
@click.option("--force", is_flag=True, help="Replace the bundle that stands there.")
@click.option("--no-cache", is_flag=True, help="Neither use nor keep a bundle made before.")
@click.option(
    "--json", "as_json", is_flag=True, help="Print the manifest instead of the path; with --list, the networks."
)
@click.option("--list", "listing", is_flag=True, help="List the networks and stop.")
@click.option("-q", "--quiet", is_flag=True, help="Say nothing but warnings and errors.")
def _command(**flags: Any) -> int:
    """Export MODEL into a bundle: an ONNX graph proven against PyTorch, and a TensorRT engine built from it.

    MODEL is a network of ours (--list), timm:NAME, torchvision:NAME, file.py:factory, package.module:factory,
    net.onnx, or net.pt2.
    """
    if flags["listing"]:
        from engineworks.export.listing import as_json, as_table

        click.echo(as_json() if flags["as_json"] else as_table())
        return 0
    from engineworks.models.errors import ModelError
    from engineworks.runtime.errors import EngineworksError

    recipe = _recipe(flags)
    try:
        return _export(recipe, flags)
    except (EngineworksError, ModelError, MemoryError, OSError) as error:
        click.echo(f"export-model: {error or type(error).__name__}", err=True)
        return 1


def _recipe(flags: dict[str, Any]) -> "Recipe":
    """Turn flags into a recipe; contradictions are usage errors."""
    from click.core import ParameterSource

    from engineworks.export.recipe import BOTH_DECIDE, Recipe
    from engineworks.runtime.errors import ExportError

    asked = [name for name in _PRECISIONS if flags[name]]
    if not flags["model"]:
        raise click.UsageError("which MODEL? export-model --list shows them.")
    if len(asked) > 1:
        raise click.UsageError(f"--{asked[0]} and --{asked[1]} contradict each other; pass one.")
    for name in ("target", "weights", "out", "labels", "samples", "calib_data", "calib_cache", "data"):
        if flags[name] == "":
            raise click.UsageError(f"--{name.replace('_', '-')} is empty; leave it out, or give it a value.")
    given_share = click.get_current_context().get_parameter_source("fp16_share") != ParameterSource.DEFAULT
    if flags["max_drop"] is not None and given_share:
        raise click.UsageError(BOTH_DECIDE)
    precision: Any = asked[0] if asked else "fp32"
    given = {name: flags[name] for name in _AS_THEY_ARE} | _parsed(flags)
    try:
        return Recipe(precision=precision, opset=flags["opset"] or 0, input=flags["input_"], **given)
    except ExportError as error:
        raise click.UsageError(str(error)) from error


def _parsed(flags: dict[str, Any]) -> dict[str, Any]:
    """Read the flags that have a form of their own."""
    from engineworks.export.inputs import parse_shape
    from engineworks.export.recipe import (
        parse_batch,
        parse_model_arg,
        parse_numbers,
        parse_points,
        parse_resize,
        parse_share,
    )
    from engineworks.export.trt_targets import parse_targets

    return {
        "batch": _read("--batch", parse_batch, flags["batch"]),
        "targets": _read("--target", parse_targets, flags["target"]) or (),
        "shapes": tuple(_read("--shape", parse_shape, text) for text in flags["shapes"]),
        "model_args": tuple(_read("--model-arg", parse_model_arg, text) for text in flags["model_args"]),
        "mean": _read("--mean", parse_numbers, flags["mean"]),
        "std": _read("--std", parse_numbers, flags["std"]),
        "resize": _read("--resize", parse_resize, flags["resize"]),
        "fp16_share": _read("--fp16-share", parse_share, flags["fp16_share"]),
        "max_drop": _read("--max-drop", parse_points, flags["max_drop"]),
    }


def _read(flag: str, parse: Callable[[str], Any], text: str | None) -> Any:
    from engineworks.runtime.errors import EngineError

    try:
        return None if text is None else parse(text)
    except (ValueError, EngineError) as error:
        raise click.BadParameter(str(error), param_hint=flag) from error


def _export(recipe: "Recipe", flags: dict[str, Any]) -> int:
    from engineworks.export.pipeline import export_model
    from engineworks.export.talk import Talk

    out = Path(flags["out"] or recipe.name)
    talk = Talk(quiet=flags["quiet"])
    with talk:
        bundle = export_model(
            recipe,
            out,
            force=flags["force"],
            use_cache=not flags["no_cache"],
            say=talk.say,
            on_progress=talk.progress,
            on_download=talk.download,
        )
    talk.done(bundle)
    click.echo((bundle.path / "manifest.json").read_text("utf-8").rstrip() if flags["as_json"] else str(out))
    return 0


if __name__ == "__main__":
    run()
