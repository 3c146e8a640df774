"""The manifest's text: a round trip without loss, its golden bytes, and every way to refuse."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.runtime import BundleError, Manifest, Tensor
from engineworks.runtime.manifest import (
    Batch,
    EngineRecord,
    FileRecord,
    Model,
    Precision,
    Rung,
    Weights,
    dump,
    parse,
)

WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
NUMBERS = st.integers(-(2**70), 2**70)
FLOATS = st.floats(allow_nan=False, allow_infinity=False)
JSON = st.recursive(
    st.none() | st.booleans() | NUMBERS | FLOATS | WORDS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(WORDS, inner, max_size=3),
    max_leaves=8,
)
COUNTS = st.dictionaries(WORDS, NUMBERS, max_size=3)


def many(values: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.lists(values, max_size=3).map(tuple)


TENSORS = st.builds(Tensor, WORDS, WORDS, many(NUMBERS | WORDS))
RUNGS = st.builds(
    Rung, WORDS, WORDS, WORDS, NUMBERS, FLOATS, FLOATS, FLOATS, st.none() | FLOATS, FLOATS, FLOATS, FLOATS, WORDS
)
MANIFESTS = st.builds(
    Manifest,
    name=WORDS,
    created=WORDS,
    model=st.builds(Model, WORDS, WORDS, WORDS, NUMBERS),
    weights=st.builds(Weights, WORDS, WORDS, st.booleans(), st.none() | WORDS, st.none() | WORDS),
    precision=st.builds(Precision, WORDS, COUNTS),
    inputs=many(TENSORS),
    outputs=many(TENSORS),
    scores=st.sampled_from(["logits", "distances"]),
    batch=st.lists(st.integers(1, 10**6), min_size=3, max_size=3).map(lambda sizes: Batch(*sorted(sizes))),
    preprocessing=st.none() | st.dictionaries(WORDS, JSON, max_size=3),
    labels=many(WORDS),
    graph=st.dictionaries(WORDS, JSON, max_size=3),
    parity=many(RUNGS),
    engines=many(st.builds(EngineRecord, WORDS, WORDS, WORDS, many(WORDS), NUMBERS, COUNTS)),
    notes=many(WORDS),
    recipe=st.dictionaries(WORDS, JSON, max_size=3),
    tools=st.dictionaries(WORDS, WORDS, max_size=3),
    files=st.dictionaries(WORDS, st.builds(FileRecord, WORDS, NUMBERS), max_size=3),
    schema=st.just(1),
)

GOLDEN = """\
{
  "batch": {
    "max": 8,
    "min": 1,
    "opt": 4
  },
  "created": "2026-01-02T03:04:05Z",
  "digest": "d949e0ab2a703d666db07c77e4e306f2aae09243a754ae8c31b893986acf2b69",
  "engines": [
    {
      "file": "engines/rtx.engine",
      "flavour": "rtx",
      "layer_types": {
        "Half": 1
      },
      "layers": 3,
      "targets": [
        "sm_89"
      ],
      "version": "1.7"
    }
  ],
  "files": {
    "model.onnx": {
      "bytes": 5,
      "sha256": "abc"
    }
  },
  "graph": {
    "cpu": "model.onnx",
    "nodes": 3,
    "opset": 18,
    "simplifier": "none"
  },
  "inputs": [
    {
      "dtype": "float32",
      "name": "image",
      "shape": [
        "batch",
        3,
        8,
        8
      ]
    }
  ],
  "labels": [
    "café"
  ],
  "model": {
    "family": "tests",
    "name": "four",
    "paper": "nobody 2026",
    "parameters": 16
  },
  "name": "four-fp16",
  "notes": [
    "made for a test"
  ],
  "outputs": [
    {
      "dtype": "float32",
      "name": "scores",
      "shape": [
        "batch",
        4
      ]
    }
  ],
  "parity": [
    {
      "batch": 2,
      "candidate": "onnx-fp16",
      "cosine": 0.999999,
      "floor": "derived",
      "max_abs": 0.001,
      "max_rel": 0.002,
      "output": "scores",
      "reference": "pytorch-fp32",
      "required_db": 40.0,
      "sqnr_db": null,
      "top1": 1.0,
      "top5": 1.0
    }
  ],
  "precision": {
    "asked": "fp16",
    "realised": {
      "float16": 1
    }
  },
  "preprocessing": null,
  "recipe": {
    "precision": "fp16"
  },
  "schema": 1,
  "scores": "logits",
  "tools": {
    "numpy": "2"
  },
  "weights": {
    "detail": "four.safetensors",
    "licence": "CC0-1.0",
    "origin": "file",
    "sha256": "0000000000000000000000000000000000000000000000000000000000000000",
    "trained": true
  }
}
"""


def golden(manifest: Manifest) -> Manifest:
    rung = replace(manifest.parity[0], sqnr_db=None)
    files = {"model.onnx": FileRecord("abc", 5)}
    return replace(manifest, labels=("café",), preprocessing=None, parity=(rung,), files=files)


def sealed(manifest: Manifest, change: Callable[[dict[str, Any]], object]) -> str:
    """The text of a manifest that was changed by someone who can compute a digest."""
    content = json.loads(dump(manifest))
    change(content)
    kept = {key: value for key, value in content.items() if key not in {"created", "digest"}}
    text = json.dumps(kept, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    return json.dumps(content | {"digest": hashlib.sha256(text).hexdigest()})


@settings(max_examples=25)
@given(MANIFESTS)
def test_a_manifest_is_read_as_it_was_written(made: Manifest) -> None:
    assert parse(dump(made), "x") == made


@settings(max_examples=25)
@given(MANIFESTS)
def test_the_text_of_what_was_read_is_the_text_that_was_written(made: Manifest) -> None:
    text = dump(made)
    assert dump(parse(text, "x")) == text


def test_the_text_of_schema_1_is_these_bytes(manifest: Manifest) -> None:
    assert dump(golden(manifest)) == GOLDEN


def test_the_digest_covers_all_but_the_time_of_making(manifest: Manifest) -> None:
    content = json.loads(dump(manifest))
    uncovered = set()
    for key in content:
        edited = json.dumps(content | {key: "other"})
        try:
            parse(edited, "x")
            uncovered.add(key)
        except BundleError:
            pass
    assert uncovered == {"created"}


def test_an_unknown_field_under_a_right_digest_is_passed_over(manifest: Manifest) -> None:
    assert parse(sealed(manifest, lambda content: content.update(colour="red")), "x") == manifest


def test_an_unknown_field_that_was_slipped_in_is_refused(manifest: Manifest) -> None:
    edited = json.loads(dump(manifest)) | {"colour": "red"}
    with pytest.raises(BundleError, match=r"bundle x: manifest.json was edited or cut .* Re-run export-model\.$"):
        parse(json.dumps(edited), "x")


@pytest.mark.parametrize("schema", [2, 3, 10**30])
def test_a_later_schema_is_refused_with_the_line_that_mends_it(manifest: Manifest, schema: int) -> None:
    content = json.loads(dump(manifest)) | {"schema": schema}
    with pytest.raises(BundleError) as caught:
        parse(json.dumps(content), "x")
    assert str(caught.value) == (
        f"bundle x: schema {schema} is later than this version reads (1). Update it: pip install -U engineworks"
    )


@pytest.mark.parametrize("schema", [None, True, False, "1", 0, -1, 1.5, [1], {}])
def test_what_is_no_schema_is_refused_and_shown(manifest: Manifest, schema: object) -> None:
    text = sealed(manifest, lambda content: content.update(schema=schema))
    with pytest.raises(BundleError) as caught:
        parse(text, "x")
    assert str(caught.value) == f"bundle x: expected schema 1 in manifest.json, got {schema!r}."


def test_a_manifest_without_a_schema_is_refused(manifest: Manifest) -> None:
    with pytest.raises(BundleError, match=r"expected schema 1 in manifest\.json, got None\.$"):
        parse(sealed(manifest, lambda content: content.pop("schema")), "x")


@pytest.mark.parametrize("text", ["[]", "[1, 2]", '"manifest"', "1", "null", "true"])
def test_json_that_is_no_object_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"expected schema 1 in manifest\.json, got None\.$"):
        parse(text, "x")


@pytest.mark.parametrize("text", ["", "{", "schema: 1", "\ufeff{}", '{"schema": 1', "9" * 5000, "[" * 100_000])
def test_what_is_no_json_is_refused(text: str) -> None:
    with pytest.raises(BundleError, match=r"^bundle x: manifest\.json is not JSON \(.*Re-run export-model\.$"):
        parse(text, "x")


def test_a_text_cut_anywhere_is_refused(manifest: Manifest) -> None:
    text = dump(manifest)
    for length in range(len(text) - 2):  # the last brace and the newline: without the newline nothing is lost
        with pytest.raises(BundleError):
            parse(text[:length], "x")


def fields(content: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path of every key of a manifest's records; free-form mappings count as one value."""
    free = {"recipe", "tools", "graph", "preprocessing", "realised", "layer_types", "digest", "schema"}
    paths: list[tuple[Any, ...]] = []
    for key, value in content.items() if isinstance(content, dict) else enumerate(content):
        if key in {"digest", "schema"}:
            continue
        paths += [(*path, key)] if isinstance(key, str) and path[-1:] != ("files",) else []
        if isinstance(value, (dict, list)) and key not in free:
            paths += fields(value, (*path, key))
    return paths


def at(content: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        content = content[key]
    return content


def test_every_field_of_every_record_is_needed(manifest: Manifest) -> None:
    made = replace(manifest, files={"model.onnx": FileRecord("abc", 5)})
    paths = fields(json.loads(dump(made)))
    assert len(paths) > 50
    accepted: list[tuple[Any, ...]] = []
    unnamed: list[tuple[Any, ...]] = []
    for path in paths:
        try:
            parse(sealed(made, lambda content, path=path: at(content, path[:-1]).pop(path[-1])), "x")  # type: ignore[misc]
            accepted.append(path)
        except BundleError as error:
            unnamed += [path] if repr(path[-1]) not in str(error) else []
    assert (accepted, unnamed) == ([], [])


@pytest.mark.parametrize("wrong", [{"a": []}, [[[]]], [None], 1j], ids=str)
def test_every_field_is_of_its_type(manifest: Manifest, wrong: object) -> None:
    made = replace(manifest, files={"model.onnx": FileRecord("abc", 5)})
    accepted = []
    for path in fields(json.loads(dump(made))):
        value = 1.5 if wrong == 1j else wrong
        try:
            parse(sealed(made, lambda content, p=path, v=value: at(content, p[:-1]).update({p[-1]: v})), "x")  # type: ignore[misc]
            accepted.append(path[-1])
        except BundleError:
            pass
    free = {"graph", "preprocessing", "recipe"} if isinstance(wrong, dict) else set()
    numbers = {"max_abs", "max_rel", "cosine", "sqnr_db", "top1", "top5", "required_db"} if wrong == 1j else set()
    assert set(accepted) == free | numbers


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("batch", "max"), True, "Batch.max: expected int, got True"),
        (("batch", "max"), "8", "Batch.max: expected int, got '8'"),
        (("weights", "trained"), 1, "Weights.trained: expected bool, got 1"),
        (("weights", "sha256"), 1, "Weights.sha256: expected str | None, got 1"),
        (("labels",), "abc", "labels: expected a list, got 'abc'"),
        (("labels",), [1], "Manifest.labels: expected tuple[str, ...], got (1,)"),
        (("scores",), "distance", "Manifest.scores: expected typing.Literal['logits', 'distances'], got 'distance'"),
        (("created",), 5, "Manifest.created: expected str, got 5"),
    ],
)
def test_a_mistyped_field_is_named(manifest: Manifest, path: tuple[str, ...], value: object, message: str) -> None:
    with pytest.raises(BundleError) as caught:
        parse(sealed(manifest, lambda content: at(content, path[:-1]).update({path[-1]: value})), "x")
    assert str(caught.value) == f"bundle x: manifest.json lacks or mistypes a field: {message}."


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity", "1e999"])
@pytest.mark.parametrize("field", ["cosine", "created", "nodes"])
def test_a_number_that_is_not_finite_is_refused(manifest: Manifest, number: str, field: str) -> None:
    mark = '"nothing but this"'
    content = json.loads(dump(manifest))
    {"cosine": content["parity"][0], "created": content, "nodes": content["graph"]}[field][field] = json.loads(mark)
    with pytest.raises(BundleError):
        parse(json.dumps(content).replace(mark, number), "x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_number_that_is_not_finite_is_not_written(manifest: Manifest, value: float) -> None:
    with pytest.raises(ValueError, match="Out of range float values are not JSON compliant"):
        dump(replace(manifest, parity=(replace(manifest.parity[0], max_abs=value),)))


def test_half_a_surrogate_pair_is_refused(manifest: Manifest) -> None:
    text = sealed(manifest, lambda content: content.update(name="\ud800"))
    with pytest.raises(BundleError, match="lacks or mistypes a field"):
        parse(text, "x")


@given(st.text(max_size=60) | JSON.map(json.dumps))
def test_junk_is_refused_with_our_own_error(text: str) -> None:
    with pytest.raises(BundleError):
        parse(text, "x")


@settings(max_examples=30)
@given(JSON, st.data())
def test_junk_in_any_field_is_refused_with_our_own_error_or_read(value: object, data: st.DataObject) -> None:
    manifest = data.draw(MANIFESTS)
    path = data.draw(st.sampled_from(fields(json.loads(dump(manifest)))))
    text = sealed(manifest, lambda content: at(content, path[:-1]).update({path[-1]: value}))
    try:
        read = parse(text, "x")
    except BundleError:
        return
    assert parse(dump(read), "x") == read


def test_the_summary_says_that_weights_are_untrained(manifest: Manifest) -> None:
    untrained = replace(manifest, weights=Weights("seed", "0", False, None, None))
    assert manifest.summary == "four-fp16 (four, fp16)"
    assert untrained.summary == "four-fp16 (four, fp16, UNTRAINED weights: its answers mean nothing)"


@pytest.mark.parametrize("batch", [Batch(0, 1, 2), Batch(2, 1, 3), Batch(1, 4, 3)])
def test_batch_sizes_out_of_order_are_refused(manifest: Manifest, batch: Batch) -> None:
    with pytest.raises(BundleError, match="expected 1 ≤ min ≤ opt ≤ max"):
        parse(dump(replace(manifest, batch=batch)), "four")
