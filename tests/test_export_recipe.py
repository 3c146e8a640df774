"""What was asked for, read and written."""

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engineworks.export.inputs import InputSpec
from engineworks.export.recipe import (
    Recipe,
    parse_batch,
    parse_model_arg,
    parse_numbers,
    parse_points,
    parse_resize,
    parse_share,
)
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch


@pytest.mark.parametrize(
    ("text", "batch"),
    [("1:8:32", Batch(1, 8, 32)), ("4", Batch(4, 4, 4)), ("2:2:2", Batch(2, 2, 2)), ("01:008:32", Batch(1, 8, 32))],
)
def test_a_batch_is_three_numbers_or_one(text: str, batch: Batch) -> None:
    assert parse_batch(text) == batch


@pytest.mark.parametrize(
    "text",
    ["", "8:1:32", "1:32:8", "0", "0:1:2", "-1", "1:2", "1:2:3:4", "1:x:3", "1: 2:3", "1.0", "+1", "1_0", "1:1:65537"],
)
def test_what_is_no_batch_says_so_with_what_was_given(text: str) -> None:
    with pytest.raises(ValueError, match="expected") as caught:
        parse_batch(text)
    assert repr(text) in str(caught.value)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=20) | st.from_regex(r"[0-9:.\- ]{0,12}", fullmatch=True))
@example("٣")
@example("1:²:3")
@example("9" * 5000)
@example("1:1:" + "9" * 5000)
def test_junk_raises_nothing_but_a_value_error(text: str) -> None:
    with contextlib.suppress(ValueError):
        batch = parse_batch(text)
        assert text.isascii()
        assert 1 <= batch.min <= batch.opt <= batch.max


@given(st.lists(st.integers(1, 65536), min_size=3, max_size=3).map(sorted))
def test_a_batch_that_is_written_is_read_back(sizes: list[int]) -> None:
    assert parse_batch(":".join(map(str, sizes))) == Batch(*sizes)


def test_the_opset_follows_the_precision_unless_asked_for() -> None:
    assert Recipe("net").graph_opset == 20
    assert Recipe("net", "bf16").graph_opset == 22
    assert Recipe("net", "bf16", opset=23).graph_opset == 23


def test_a_bundle_is_called_after_its_model_and_precision() -> None:
    assert Recipe("lenet5", "fp16").name == "lenet5-fp16"


def test_the_record_is_plain_json_without_folders_of_this_machine() -> None:
    recipe = Recipe("net", "bf16", weights="/home/someone/secret/best.pth", targets=("sm86",))
    content = json.loads(json.dumps(recipe.to_json()))
    assert content["weights"] == "best.pth"
    assert content["opset"] == 22
    assert content["targets"] == ["sm86"]
    assert content["batch"] == {"min": 1, "opt": 8, "max": 32}


def test_every_field_stands_in_the_record() -> None:
    plain = Recipe("net").to_json()
    changes = {
        "model": "other",
        "precision": "fp16",
        "weights": "imagenet",
        "batch": Batch(1, 1, 1),
        "opset": 18,
        "engine": "none",
        "targets": ("sm86",),
        "simplify": "none",
        "route": "dynamo",
        "input": "uint8",
        "model_args": (("num_classes", 10),),
        "shapes": (InputSpec("", (3, 32, 32)),),
        "resize": (40, 50),
        "interpolation": "bicubic",
        "labels": "names.txt",
        "samples": "real.npz",
        "layers": True,
    }
    for name, value in changes.items():
        assert replace(Recipe("net"), **{name: value}).to_json() != plain, name  # type: ignore[arg-type]
    normal = replace(Recipe("net"), mean=(0.5,), std=(0.25,)).to_json()
    assert (normal["mean"], normal["std"]) == ([0.5], [0.25])
    assert Recipe("net.pt2", trust=True).to_json()["trust"]
    assert {*changes, "mean", "std", "trust"} == set(plain)


def test_every_calibration_field_stands_in_the_record_of_int8_alone() -> None:
    plain = Recipe("net", "int8", calib_data="/home/someone/photos")
    changes: dict[str, Any] = {
        "calib_data": "synthetic", "calib_images": 8, "calib_method": "mse", "calib_cache": "/tmp/kept.json",
        "quality": "high", "fp16_share": 0.5, "int8_rest": "fp32",
    }  # fmt: skip
    for name, value in changes.items():
        assert replace(plain, **{name: value}).to_json() != plain.to_json(), name
    budget = replace(plain, max_drop=0.5, data="/home/someone/labelled")
    assert set(plain.to_json()) == {*Recipe("net").to_json(), *changes, "max_drop", "data"}
    assert plain.to_json()["calib_data"] == "photos"
    assert (budget.to_json()["max_drop"], budget.to_json()["data"]) == (0.5, "labelled")
    assert "fp16_share" not in budget.to_json(), "with a budget nothing reads it"
    assert replace(budget, max_drop=0.6).to_json() != budget.to_json()


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int8"}, "--int8 needs --calib-data: a folder"),
        ({"precision": "fp16", "calib_data": "photos"}, "--calib-data is for --int8 alone; --fp16 reads no images"),
        ({"precision": "fp32", "quality": "high"}, "--quality is for --int8 alone"),
        ({"precision": "bf16", "fp16_share": 0.1}, "--fp16-share is for --int8 alone"),
        ({"precision": "int8", "calib_data": "x", "fp16_share": 1.5}, "--fp16-share: expected 0 to 1, or 0% to 100%"),
        ({"precision": "int8", "calib_data": "x", "quality": "best"}, "quality: expected one of fast, normal, high"),
        ({"precision": "int8", "calib_data": "x", "calib_method": "kl"}, "calib_method: expected one of auto, minmax"),
        ({"precision": "fp16", "max_drop": 0.5}, "--max-drop is for --int8 alone"),
        ({"precision": "fp32", "data": "x"}, "--data is for --int8 alone"),
        ({"precision": "int8", "calib_data": "x", "data": "y"}, "--data is what --max-drop is judged on; pass both"),
        ({"precision": "int8", "calib_data": "x", "max_drop": 0.0}, "--max-drop: expected points above 0 and up to"),
        ({"precision": "int8", "calib_data": "x", "max_drop": 101.0}, "--max-drop: expected points above 0 and up to"),
        ({"precision": "int8", "calib_data": "x", "max_drop": float("nan")}, "--max-drop: expected points above 0"),
        (
            {"precision": "int8", "calib_data": "synthetic", "max_drop": 20.0},
            "--max-drop: agreement on made-up images proves nothing",
        ),
        (
            {"precision": "int8", "calib_data": "x", "max_drop": 1.0, "fp16_share": 0.0},
            "--max-drop and --fp16-share contradict each other",
        ),
        ({"precision": "int8", "calib_data": "x", "opset": 18}, "--opset 18 and --int8: expected an opset of 19 to 23"),
    ],
)
def test_calibration_that_makes_no_sense_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Recipe("lenet5", **wrong)


@pytest.mark.parametrize(("text", "points"), [("0.5", 0.5), ("0.5%", 0.5), ("100", 100.0), ("1e-3", 0.001)])
def test_points_are_read(text: str, points: float) -> None:
    assert parse_points(text) == points


@pytest.mark.parametrize("text", ["0", "-1", "101", "nan", "inf", "half", "", "%", "0.5%%"])
def test_points_that_are_none_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"points above 0|could not convert"):
        parse_points(text)


@pytest.mark.parametrize(("text", "share"), [("1%", 0.01), ("0.01", 0.01), ("0", 0.0), ("100%", 1.0), ("12.5%", 0.125)])
def test_a_share_is_a_number_or_a_percentage(text: str, share: float) -> None:
    assert parse_share(text) == share


@pytest.mark.parametrize("text", ["", "%", "-1%", "101%", "2", "nan", "inf", "a"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_share(text)


@pytest.mark.parametrize(
    ("precision", "opset", "expected"), [("fp32", 17, "18 to 23"), ("fp16", 24, "18 to 23"), ("bf16", 20, "22 to 23")]
)
def test_an_operator_set_that_the_precision_cannot_have_is_refused(precision: str, opset: int, expected: str) -> None:
    with pytest.raises(ExportError, match=f"--opset {opset} and --{precision}: expected an opset of {expected}"):
        Recipe("lenet5", precision=precision, opset=opset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int4"}, "precision: expected one of fp32, fp16, bf16, int8, got 'int4'"),
        ({"engine": "trt"}, "engine: expected one of auto, tensorrt, rtx, none, got 'trt'"),
        ({"simplify": "foo"}, "simplify: expected one of auto, onnxsim, onnxslim, none, got 'foo'"),
        ({"engine": "none", "targets": ("sm86",)}, "--target and --engine none contradict each other"),
        ({"engine": "tensorrt", "targets": ("sm86",)}, "--target and --engine tensorrt contradict each other"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Recipe("lenet5", **wrong)


OWN: dict[str, Any] = {"model": "net.py:make", "mean": (0.5,), "std": (0.25,)}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"model": "lenet5", "route": "onnx"}, "route: expected one of auto, fx, dynamo, got 'onnx'"),
        ({"model": "lenet5", "input": "int8"}, "input: expected one of float32, uint8, got 'int8'"),
        ({"model": "lenet5", "mean": (0.5,)}, "--mean and --std belong together; pass both"),
        ({"model": "lenet5", "std": (0.5,)}, "--mean and --std belong together"),
        (OWN | {"std": (0.0,)}, r"--std: expected numbers other than 0, of 1e-6 to 1e6, got \(0\.0,\)"),
        (OWN | {"std": (0.5, 0.5, 0.0)}, "--std: expected numbers other than 0"),
        (OWN | {"std": (1e-300,)}, "--std: expected numbers other than 0"),
        (OWN | {"std": (1e300,)}, "--std: expected numbers"),
        (OWN | {"mean": (-1e300,)}, "--mean: expected numbers of at most 1e6"),
        ({"model": "lenet5", "trust": True}, r"--trust is for \.pt2 files alone"),
        ({"model": "net.onnx", "trust": True}, r"--trust is for \.pt2 files alone"),
        (
            {"model": "/x/net.onnx", "weights": "w.pth"},
            r"--weights and net\.onnx contradict each other: the file holds",
        ),
        ({"model": "net.pt2", "weights": "imagenet"}, r"--weights and net\.pt2 contradict each other"),
        ({"model": "net.pt2", "model_args": (("a", 1),)}, r"--model-arg and net\.pt2 contradict each other"),
        ({"model": "net.onnx", "route": "fx"}, r"--route fx: net\.onnx is no module that could take it"),
        ({"model": "net.onnx", "route": "dynamo"}, "--route dynamo"),
        ({"model": "net.pt2", "route": "fx"}, r"--route fx: net\.pt2 is no module"),
        ({"model": "net.py:make", "weights": "imagenet"}, "none were published for a network of your own"),
        ({"model": "net.py:make", "input": "uint8"}, "--input uint8 need --mean and --std for this model"),
        ({"model": "net.onnx", "resize": 5}, "need --mean and --std for this model"),
        ({"model": "net.pt2", "interpolation": "bicubic"}, "need --mean and --std for this model"),
        ({"model": "net.py:make", "model_args": (("a", 1), ("b", 2), ("a", 1))}, "--model-arg a is given twice"),
        ({"model": "net.py"}, "which function makes the network"),
        ({"model": "timm:"}, "which network of timm"),
    ],
)
def test_a_flag_that_has_no_use_here_is_refused_and_not_passed_over(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Recipe(**wrong)


@pytest.mark.parametrize("model", ["lenet5", "timm:resnet18", "torchvision:resnet18"])
def test_a_network_with_preprocessing_of_its_own_may_have_parts_of_it_replaced(model: str) -> None:
    recipe = Recipe(model, resize=5, interpolation="bicubic", input="uint8")
    assert (recipe.mean, recipe.std) == (None, None)


def test_the_record_shows_files_without_their_folders_and_arguments_as_python_writes_them() -> None:
    content = Recipe(
        "/secret/net.py:make",
        labels="/secret/names.txt",
        samples="/secret/real.npz",
        model_args=(("depth", 3), ("name", "a"), ("sizes", [1, 2])),
        shapes=(InputSpec("x", (3, 8, 9)), InputSpec("ids", (), "int64")),
    ).to_json()
    assert "secret" not in json.dumps(content)
    assert content["model_args"] == {"depth": "3", "name": "'a'", "sizes": "[1, 2]"}
    assert content["shapes"] == ["x:3x8x9:float32", "ids::int64"]


@pytest.mark.parametrize(
    ("text", "numbers"),
    [("0.5", (0.5,)), ("0.485,0.456,0.406", (0.485, 0.456, 0.406)), ("-1,2e-3,.5", (-1, 0.002, 0.5))],
)
def test_numbers_are_one_or_three(text: str, numbers: tuple[float, ...]) -> None:
    assert parse_numbers(text) == numbers


@pytest.mark.parametrize("text", ["", "a", "1,2", "1,2,3,4", "nan", "1,inf,2", "1;2;3", "1,,2", "1e999"])
def test_what_are_no_numbers_is_refused(text: str) -> None:
    with pytest.raises(ValueError):
        parse_numbers(text)


@pytest.mark.parametrize(("text", "size"), [("256", 256), ("32x48", (32, 48)), ("1", 1), ("65536", 65536)])
def test_a_size_is_a_side_or_height_and_width(text: str, size: Any) -> None:
    assert parse_resize(text) == size


@pytest.mark.parametrize("text", ["", "x", "32x", "0", "0x5", "-5", "1x2x3", "65537", "5.0", "٣", "9" * 5000, "3X4"])
def test_what_is_no_size_says_so(text: str) -> None:
    with pytest.raises(ValueError):
        parse_resize(text)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("a=1", 1), ("a=1.5", 1.5), ("a=True", True), ("a=None", None), ("a=[1, 2]", [1, 2]), ("a={'b': 1}", {"b": 1}),
        ("a='1'", "1"), ("a=relu", "relu"), ("a=", ""), ("a=b=c", "b=c"), ("a=__import__('os')", "__import__('os')"),
        ("a=" + "(" * 500, "(" * 500), ("a=1 +", "1 +"),
    ],
)  # fmt: skip
def test_an_argument_is_a_literal_or_text_and_never_runs(text: str, value: Any) -> None:
    assert parse_model_arg(text) == ("a", value)


@pytest.mark.parametrize("text", ["", "a", "=1", "1a=1", "a b=1", "a-b=1", "a.b=1"])
def test_an_argument_without_a_name_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected KEY=VALUE"):
        parse_model_arg(text)
