"""What was written is read again, byte for byte; what was edited, or made of something else, is refused."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper

from engineworks.calibration.observe import Statistics, TensorStatistics
from engineworks.calibration.record import (
    Calibration,
    TensorRecord,
    check_fresh,
    dump_calibration,
    graph_sha256,
    load_calibration,
    tensor_records,
    tool_versions,
)
from engineworks.runtime import Preprocessing
from engineworks.runtime.errors import ExportError

RECIPE = Preprocessing("RGB", 256, "bilinear", (224, 224), 0, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
MADE = Calibration(
    method="mse",
    tensors={
        "b": TensorRecord(0.5, 0.0, 63.5),
        "c": TensorRecord(1.0, 0.0, 1.0, {"mse": 1.0}, (0.5, 0.25)),
        "a": TensorRecord(2.0**-126, -1e-40, 0.0),
    },
    graph="a" * 64,
    images="b" * 64,
    description="100 of 250 pictures of the folder photos",
    count=100,
    every=8,
    preprocessing=RECIPE.to_json(),
    left={"stem": "half of the error"},
    tools={"numpy": "2"},
)
FRESH: dict[str, Any] = {"graph": "a" * 64, "images": "b" * 64, "preprocessing": RECIPE, "method": "mse"}


def test_it_is_read_as_it_was_written() -> None:
    content = dump_calibration(MADE)
    assert load_calibration(content) == MADE
    assert dump_calibration(load_calibration(content)) == content


def test_the_bytes_do_not_depend_on_the_order_of_tensors() -> None:
    other = replace(MADE, tensors=dict(reversed(list(MADE.tensors.items()))))
    assert dump_calibration(other) == dump_calibration(MADE)


def test_the_text_is_the_format_that_readers_know() -> None:
    content = json.loads(dump_calibration(MADE))
    assert content["schema"] == 2
    plain = {"scale": 0.5, "minimum": 0.0, "maximum": 63.5, "candidates": {}, "means": [], "counts": [], "end": 0.0}
    assert content["tensors"]["b"] == plain
    assert set(content) == {
        "schema", "digest", "method", "tensors", "graph", "images", "description", "count", "every", "preprocessing",
        "left", "tools", "chosen", "decisions", "steps", "budget",
    }  # fmt: skip
    assert dump_calibration(MADE).endswith(b"}\n")


@given(st.dictionaries(st.text(), st.floats(2.0**-126, 2.0**100, width=32), max_size=5))
def test_every_scale_keeps_all_its_bits(scales: dict[str, float]) -> None:
    made = replace(MADE, tensors={name: TensorRecord(scale, -scale, scale) for name, scale in scales.items()})
    assert load_calibration(dump_calibration(made)).scales == scales


def test_scales_are_joined_with_the_ranges_seen() -> None:
    tensor = TensorStatistics()
    tensor.add(np.array([[-1.0, 3.0]], np.float32), 1)
    made = tensor_records(Statistics({"t": tensor}, 1, 1), {"mse": {"t": 0.25}, "minmax": {"t": 0.5}})
    counts = tuple(int(index in {16, 48}) for index in range(64))  # of 1 and 3, in bins of 1/16
    candidates = {"mse": 0.25, "minmax": 0.5}
    assert made == {"t": TensorRecord(0.25, -1.0, 3.0, candidates, (-1.0, 3.0), counts, 4.0)}


def test_the_graphs_hash_is_that_of_its_content() -> None:
    x, y = (helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n"]) for name in "xy")
    one, two = (helper.make_model(helper.make_graph([helper.make_node(kind, ["x"], ["y"])], "g", [x], [y]))
                for kind in ("Relu", "Neg"))  # fmt: skip
    assert graph_sha256(one) == graph_sha256(one.SerializeToString()) != graph_sha256(two)


def test_versions_of_what_computes_are_told() -> None:
    assert set(tool_versions()) == {"numpy", "onnx", "onnxruntime", "pillow"}


# --- refused


@pytest.mark.parametrize(
    ("old", "new"), [(b"0.5", b"0.25"), (b"mse", b"max"), (b"stem", b"head"), (b'"count": 100', b'"count": 10')]
)
def test_an_edited_file_is_refused(old: bytes, new: bytes) -> None:
    with pytest.raises(ExportError) as caught:
        load_calibration(dump_calibration(MADE).replace(old, new), "mine.json")
    assert str(caught.value) == (
        "mine.json: was edited or cut since it was written. Calibrate again without --calib-cache."
    )


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(ExportError, match=r"^calibration\.json: expected JSON, got something else"):
        load_calibration(content)


@pytest.mark.parametrize("schema", [0, 1, "2", None, True])
def test_another_schema_is_refused(schema: object) -> None:
    with pytest.raises(ExportError, match=r"^calibration\.json: expected schema 2, got"):
        load_calibration(json.dumps({"schema": schema}).encode())
    with pytest.raises(ExportError, match=r"expected schema 2, got None"):
        load_calibration(b"[1]")


@pytest.mark.parametrize("scale", [0.0, -0.5, None, "0.5", 1, True])
def test_a_scale_that_cannot_be_one_is_refused(scale: Any) -> None:
    made = replace(MADE, tensors={"t": TensorRecord(scale, 0.0, 1.0)})
    with pytest.raises(ExportError, match=r"lacks or mistypes a field: tensor 't' has a scale of"):
        load_calibration(dump_calibration(made))


def test_a_missing_or_unknown_field_is_refused() -> None:
    with pytest.raises(ExportError, match=r"lacks or mistypes a field: .*tensors"):
        load_calibration(_resealed(lambda content: content.pop("tensors")))
    with pytest.raises(ExportError, match=r"lacks or mistypes a field: .*later"):
        load_calibration(_resealed(lambda content: content.update(later=1)))


def _resealed(change: Any) -> bytes:
    """Edit the content and give it a fresh digest, as another writer would."""
    import hashlib

    content = json.loads(dump_calibration(MADE))
    del content["digest"]
    change(content)
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return json.dumps(content | {"digest": hashlib.sha256(text.encode()).hexdigest()}).encode()


def test_a_fresh_one_is_taken() -> None:
    check_fresh(MADE, **FRESH)
    check_fresh(replace(MADE, preprocessing=None), **FRESH | {"preprocessing": None})


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"graph": "c" * 64}, "another graph: sha256 aaaaaaaaaaaa…, now sha256 cccccccccccc…"),
        ({"images": "c" * 64}, "another images: sha256 bbbbbbbbbbbb…, now sha256 cccccccccccc…"),
        ({"method": "minmax"}, "another method: mse, now minmax"),
        ({"preprocessing": replace(RECIPE, resize=232)}, "another preprocessing: {"),
        ({"preprocessing": None}, "another preprocessing: {"),
    ],
)
def test_a_stale_one_is_refused_with_what_differs(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ExportError) as caught:
        check_fresh(MADE, **FRESH | change)
    assert str(caught.value).startswith(
        f"calibration.json: was made with {words.replace('another images', 'other images')}"
    )
    assert str(caught.value).endswith(". Calibrate again without --calib-cache.")
