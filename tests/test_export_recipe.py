"""What was asked for, read and written."""

import contextlib
import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from engineworks.export.inputs import InputSpec
from engineworks.export.recipe import Recipe, parse_batch
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
    }
    for name, value in changes.items():
        assert replace(Recipe("net"), **{name: value}).to_json() != plain, name  # type: ignore[arg-type]
    normal = replace(Recipe("net"), mean=(0.5,), std=(0.25,)).to_json()
    assert (normal["mean"], normal["std"]) == ([0.5], [0.25])
    assert Recipe("net.pt2", trust=True).to_json()["trust"]
    assert {*changes, "mean", "std", "trust"} == set(plain)


@pytest.mark.parametrize(
    ("precision", "opset", "expected"), [("fp32", 17, "18 to 23"), ("fp16", 24, "18 to 23"), ("bf16", 20, "22 to 23")]
)
def test_an_operator_set_that_the_precision_cannot_have_is_refused(precision: str, opset: int, expected: str) -> None:
    with pytest.raises(ExportError, match=f"--opset {opset} and --{precision}: expected an opset of {expected}"):
        Recipe("lenet5", precision=precision, opset=opset)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"precision": "int4"}, "precision: expected one of fp32, fp16, bf16, got 'int4'"),
        ({"engine": "trt"}, "engine: expected one of auto, tensorrt, rtx, none, got 'trt'"),
        ({"simplify": "foo"}, "simplify: expected one of auto, onnxsim, onnxslim, none, got 'foo'"),
        ({"engine": "none", "targets": ("sm86",)}, "--target and --engine none contradict each other"),
        ({"engine": "tensorrt", "targets": ("sm86",)}, "--target and --engine tensorrt contradict each other"),
    ],
)
def test_a_recipe_that_contradicts_itself_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ExportError, match=message):
        Recipe("lenet5", **wrong)
