"""A bundle as a Triton model: parsed back with Triton's own protobuf, equal to the bundle; what is lost is said."""

import importlib.util
import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks import runtime
from engineworks.runtime import BackendError, BundleError, Tensor, open_bundle
from engineworks.runtime.deploy_triton import CONFIG, triton_model
from engineworks.runtime.manifest import Batch, EngineRecord, Weights

Make = Callable[..., Path]


def with_plans(make: Make, contents: dict[str, bytes], *targets: str) -> runtime.Bundle:
    plans = [EngineRecord(f"engines/{t}.engine", "tensorrt", "11.4", (t,), 3, {}) for t in targets]
    return open_bundle(make(files=contents | {plan.file: plan.file.encode() for plan in plans}, engines=tuple(plans)))


@cache
def schema() -> Any:
    """Load Triton's protobuf alone: tritonclient's package around it wants gRPC and an older protobuf, and it does not.

    Cached, for protobuf takes each definition once.
    """
    package = importlib.util.find_spec("tritonclient")
    if package is None or package.origin is None:
        pytest.skip("tritonclient is not installed")
    file = Path(package.origin).parent / "grpc" / "model_config_pb2.py"
    spec = importlib.util.spec_from_file_location("model_config_pb2", file)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def parsed(bundle: runtime.Bundle, **options: Any) -> Any:
    text_format = pytest.importorskip("google.protobuf.text_format", reason="protobuf is not installed")
    text = triton_model(bundle, **options).files[CONFIG].decode()
    return text_format.Parse(text, schema().ModelConfig())


def test_names_types_and_sizes_are_the_bundles(bundle: Path) -> None:
    opened = open_bundle(bundle)
    config = parsed(opened)
    assert (config.name, config.platform, config.max_batch_size) == ("four-fp16", "onnxruntime_onnx", 8)
    for told, ours in ((config.input, opened.manifest.inputs), (config.output, opened.manifest.outputs)):
        assert [(tensor.name, tuple(tensor.dims)) for tensor in told] == [(t.name, t.shape[1:]) for t in ours]
        assert {tensor.data_type for tensor in told} == {11}  # TYPE_FP32 in model_config.proto
    assert config.HasField("dynamic_batching")


@pytest.mark.parametrize("dtype", ["float64", "float32", "float16", "bfloat16", "bool", "int8", "uint8", "int64"])
def test_every_type_of_a_bundle_is_one_of_tritons(make_bundle: Make, dtype: str) -> None:
    inputs = (Tensor("image", dtype, ("batch", 3)),)
    config = parsed(open_bundle(make_bundle(inputs=inputs, preprocessing=None)))
    told = type(config.input[0]).DESCRIPTOR.fields_by_name["data_type"].enum_type.values_by_number
    short = {"bfloat16": "BF16", "bool": "BOOL"}.get(dtype) or dtype.upper().replace("FLOAT", "FP")
    assert told[config.input[0].data_type].name == f"TYPE_{short}"


def test_it_is_warmed_up_at_the_smallest_the_usual_and_the_largest_batch(bundle: Path) -> None:
    warmups = parsed(open_bundle(bundle)).model_warmup
    assert [warmup.batch_size for warmup in warmups] == [1, 4, 8]
    assert [list(warmup.inputs["image"].dims) for warmup in warmups] == [[3, 8, 8]] * 3


def test_the_graph_is_the_bundles_byte_for_byte_and_twice_the_same(bundle: Path) -> None:
    opened = open_bundle(bundle)
    model = triton_model(opened)
    assert model.files["1/model.onnx"] == opened.read("model.onnx")
    assert model == triton_model(opened)


def test_labels_stand_one_on_a_line(bundle: Path) -> None:
    model = triton_model(open_bundle(bundle))
    assert model.files["labels.txt"] == b"red\ngreen\nblue\ndark\n"
    assert parsed(open_bundle(bundle)).output[0].label_filename == "labels.txt"


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"scores": "distances"}, "Triton's classification would name the farthest"),
        ({"labels": ("a",)}, "there are 1, for no output of ours"),
        ({"labels": ("a\nb", "c", "d", "e")}, "does not fit on a line"),
    ],
)
def test_labels_that_would_mislead_are_left_out_and_it_is_said(
    make_bundle: Make, fields: dict[str, Any], why: str
) -> None:
    model = triton_model(open_bundle(make_bundle(**fields)))
    assert "labels.txt" not in model.files
    assert b"label_filename" not in model.files[CONFIG]
    assert any(why in note for note in model.notes)


def test_one_tensorrt_engine_is_taken_with_its_profile_and_its_conditions(
    make_bundle: Make, contents: dict[str, bytes]
) -> None:
    opened = with_plans(make_bundle, contents, "sm_90")
    model, config = triton_model(opened), parsed(opened)
    assert model.files["1/model.plan"] == b"engines/sm_90.engine"
    assert "model.plan runs only on sm_90 in a Triton with TensorRT 11.4." in model.notes
    assert config.platform == "tensorrt_plan"
    assert list(config.instance_group[0].profile) == ["0"]
    assert list(config.dynamic_batching.preferred_batch_size) == [4]


def test_of_several_engines_one_has_to_be_named(make_bundle: Make, contents: dict[str, bytes]) -> None:
    opened = with_plans(make_bundle, contents, "sm_89", "sm_90")
    with pytest.raises(BackendError, match=r"expected one tensorrt engine, got 2 .*Pass --target"):
        triton_model(opened)
    assert triton_model(opened, target="sm_89").files["1/model.plan"] == b"engines/sm_89.engine"
    assert "1/model.onnx" in triton_model(opened, backend="onnxruntime").files


def test_an_rtx_engine_is_not_given_to_triton_and_it_is_said(bundle: Path) -> None:
    model = triton_model(open_bundle(bundle))
    assert any(note.startswith("left in the bundle: engines/rtx.engine") for note in model.notes)
    with pytest.raises(BackendError, match=r"expected one tensorrt engine, got 0 \(engines: rtx for sm_89\)"):
        triton_model(open_bundle(bundle), backend="tensorrt")


def test_a_fixed_batch_stays_in_the_sizes(make_bundle: Make) -> None:
    shapes: dict[str, Any] = {
        "inputs": (Tensor("image", "float32", (4, 3, 8, 8)),),
        "outputs": (Tensor("scores", "float32", (4, 4)),),
        "batch": Batch(4, 4, 4),
    }
    opened = open_bundle(make_bundle(**shapes))
    config = parsed(opened)
    assert (config.max_batch_size, list(config.input[0].dims)) == (0, [4, 3, 8, 8])
    assert not config.HasField("dynamic_batching")
    assert [warmup.batch_size for warmup in config.model_warmup] == [1]
    assert any("joins no requests" in note for note in triton_model(opened).notes)


def test_a_row_without_axes_is_reshaped_for_triton_has_no_empty_sizes(make_bundle: Make) -> None:
    opened = open_bundle(make_bundle(inputs=(Tensor("image", "float32", ("batch",)),), preprocessing=None))
    told = parsed(opened).input[0]
    assert (list(told.dims), told.HasField("reshape"), list(told.reshape.shape)) == ([1], True, [])


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({"batch": Batch(2, 4, 8)}, "knows no smallest batch"),
        ({"inputs": (Tensor("image", "float32", ("batch", 3, "height", 8)),)}, "no warm-up: an axis of image is free"),
        ({"graph": {"cpu": "cpu.onnx"}}, "KIND_GPU: on a CPU"),
        ({"weights": Weights("seed", "0", False, None, None)}, "UNTRAINED"),
        ({}, "Triton prepares no pictures"),
    ],
)
def test_what_triton_cannot_express_is_said(make_bundle: Make, fields: dict[str, Any], why: str) -> None:
    assert any(why in note for note in triton_model(open_bundle(make_bundle(**fields))).notes)


def test_a_client_finds_the_preprocessing_in_the_parameters(bundle: Path) -> None:
    parameters = parsed(open_bundle(bundle)).parameters
    told = json.loads(parameters["engineworks_preprocessing"].string_value)
    assert told == open_bundle(bundle).manifest.preprocessing


def test_text_of_any_kind_survives(make_bundle: Make) -> None:
    name = 'a"b\\c é\n'
    opened = open_bundle(make_bundle(outputs=(Tensor(name, "float32", ("batch", 4)),)))
    assert parsed(opened).output[0].name == name


@pytest.mark.parametrize("name", ["", "a/b", "..", "é", "a b", "x" * 200])
def test_a_name_that_triton_or_a_folder_cannot_have_is_refused(bundle: Path, name: str) -> None:
    with pytest.raises(BundleError, match=r"expected letters, digits, .* for Triton"):
        triton_model(open_bundle(bundle), name=name)


def test_a_type_that_triton_does_not_know_is_refused(make_bundle: Make) -> None:
    opened = open_bundle(make_bundle(inputs=(Tensor("image", "complex64", ("batch", 3)),)))
    with pytest.raises(BundleError, match="tensor 'image': Triton knows no complex64"):
        triton_model(opened)


def test_an_edited_graph_is_not_handed_on(bundle: Path) -> None:
    file = bundle / "model.onnx"
    file.write_bytes(np.frombuffer(file.read_bytes(), np.uint8)[::-1].tobytes())
    with pytest.raises(BundleError, match=r"model\.onnx was edited or damaged"):
        triton_model(open_bundle(bundle))
