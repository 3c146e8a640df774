"""``check-model --layers``: every layer again on this host, held to what was proven, and the first wrong one named."""

import io
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from engineworks.runtime.bundle import Bundle, open_bundle, write_bundle
from engineworks.runtime.check import main
from engineworks.runtime.errors import BundleError
from engineworks.runtime.layers import check_layers, exposed

onnx = pytest.importorskip("onnx", reason="bundles with layers are made by export, which is not installed here")
pytest.importorskip("torch", reason="as above")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Bundle]:
    from engineworks.export.pipeline import export_model
    from engineworks.export.recipe import Recipe
    from engineworks.runtime.manifest import Batch

    folder = tmp_path_factory.mktemp("layers")
    digits = f"{Path(__file__).parents[1] / 'examples' / 'calibration.py'}:digits"
    found = {}
    for precision in ("fp32", "fp16", "bf16", "int8"):
        more = {"calib_data": digits, "calib_images": 16, "quality": "normal"} if precision == "int8" else {}
        recipe = Recipe("lenet5", precision=precision, engine="none", layers=True, batch=Batch(1, 2, 4), **more)  # type: ignore[arg-type]
        found[precision] = export_model(recipe, folder / precision, use_cache=False)
    return found


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16", "int8"])
def test_a_right_bundle_passes_with_every_value(made: dict[str, Bundle], precision: str) -> None:
    (found,) = check_layers(made[precision], "cpu")
    assert found.problem == "" and found.wrong is None
    assert len(found.layers) == len(json.loads(made[precision].read("layers.json")))


def spoilt(bundle: Bundle, target: Path, change: Callable[[np.ndarray], np.ndarray], weight: str) -> Bundle:
    """Write the bundle again with one weight changed, digests and all: as a wrong conversion would have made it."""
    from onnx import numpy_helper

    files = {name: bundle.read(name) for name in bundle.manifest.files}
    model = onnx.ModelProto.FromString(files["model.onnx"])
    (tensor,) = [tensor for tensor in model.graph.initializer if tensor.name == weight]
    values = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(values, weight))
    files["model.onnx"] = model.SerializeToString()
    return write_bundle(target, replace(bundle.manifest, files={}), files)


def one_channel(values: np.ndarray) -> np.ndarray:
    values[3] = values[3] * values.dtype.type(1.25)
    return values


def test_the_first_wrong_layer_is_named_with_its_channel(
    made: dict[str, Bundle], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = spoilt(made["fp16"], tmp_path / "wrong", one_channel, "c1.weight")
    (found,) = check_layers(bundle, "cpu")
    assert found.wrong is not None
    assert (found.wrong.value, found.wrong.module, found.wrong.channel, found.wrong.channels) == ("c1", "c1", 3, 6)
    assert main([str(bundle.path), "--layers", "--device", "cpu"]) == 1
    assert "FAILS: the error enters at c1 (c1), channel 3 of 6" in capsys.readouterr().out


def test_the_command_says_how_many_values_agree(made: dict[str, Bundle], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(made["fp16"].path), "--layers", "--device", "cpu"]) == 0
    assert "33 values are as near to the original's" in capsys.readouterr().out
    assert main([str(made["fp16"].path), "--layers", "--device", "cpu", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["passed"] and len(record["backends"][0]["layers"]) == 33


def test_no_backend_at_all_is_no_pass(made: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    from engineworks.runtime import layers
    from engineworks.runtime.errors import BackendError

    def none(*arguments: object, **more: object) -> None:
        raise BackendError("nothing works")

    monkeypatch.setattr(layers, "open_session", none)
    assert main([str(made["fp16"].path), "--layers"]) == 1


def test_a_bundle_without_layers_says_how_to_get_them(made: dict[str, Bundle], tmp_path: Path) -> None:
    files = {name: made["fp32"].read(name) for name in made["fp32"].manifest.files if not name.startswith("layers")}
    bundle = write_bundle(tmp_path / "plain", replace(made["fp32"].manifest, files={}), files)
    with pytest.raises(BundleError, match=r"it holds no layers\.json\. Re-run export-model with --layers"):
        list(check_layers(bundle, "cpu"))


def test_values_of_another_shape_are_refused(made: dict[str, Bundle], tmp_path: Path) -> None:
    shutil.copytree(made["fp32"].path, tmp_path / "copy")
    files = {name: made["fp32"].read(name) for name in made["fp32"].manifest.files}
    stream = io.BytesIO()
    np.savez(stream, c1=np.zeros((2, 6, 3), np.float32))
    files["layers.npz"] = stream.getvalue()
    bundle = write_bundle(tmp_path / "odd", replace(made["fp32"].manifest, files={}), files)
    with pytest.raises(BundleError, match=r"value c1: expected \(6, 3\) kept values"):
        list(check_layers(bundle, "cpu"))


def test_against_and_layers_are_two_questions(made: dict[str, Bundle]) -> None:
    path = str(made["fp16"].path)
    assert main([path, "--layers", "--against", path]) == 2


@pytest.mark.parametrize("count", [1, 300])
def test_more_outputs_are_what_onnx_reads_behind_the_graph(made: dict[str, Bundle], count: int) -> None:
    graph = made["fp16"].read("model.onnx")
    names = [f"value {index} " + "é" * index for index in range(count)]
    model = onnx.ModelProto.FromString(exposed(graph, names))
    plain = onnx.ModelProto.FromString(graph)
    assert [value.name for value in model.graph.output] == [value.name for value in plain.graph.output] + names
    assert model.graph.node == plain.graph.node


def test_the_file_is_read_back_as_a_bundle(made: dict[str, Bundle]) -> None:
    open_bundle(made["int8"].path).verify()
