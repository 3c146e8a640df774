"""Where a graph's error enters is told when a comparison fails, and with --layers whatever the outputs say."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import ModelProto, numpy_helper

from engineworks.export import half, ladder
from engineworks.export.inputs import InputSpec
from engineworks.export.layers import Layer, compare_layers
from engineworks.export.looking import as_json, blame
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.runtime.bundle import open_bundle
from engineworks.runtime.errors import ExportError, ParityError
from engineworks.runtime.manifest import Batch


def recipe(**more: Any) -> Recipe:
    fields: dict[str, Any] = {"model": "lenet5", "precision": "fp16", "engine": "none", "batch": Batch(1, 2, 4)} | more
    return Recipe(**fields)


def spoil(monkeypatch: pytest.MonkeyPatch, name: str, factor: float) -> None:
    """Let the cast make one weight of LeNet-5 another."""

    def wrong(graph: ModelProto, kind: Any) -> ModelProto:
        typed = half.to_half(graph, kind)
        for tensor in typed.graph.initializer:
            if tensor.name == name:
                values = numpy_helper.to_array(tensor).copy()
                values[2] = (values[2] * factor).astype(values.dtype)
                tensor.CopyFrom(numpy_helper.from_array(values, name))
        return typed

    monkeypatch.setattr(ladder, "to_half", wrong)


def test_a_failed_comparison_names_the_layer_and_its_channel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "c1.weight", 1.5)
    with pytest.raises(ParityError, match=r"onnx-fp16, batch .* The error enters at c1 \(c1\): .* channel 2 of 6"):
        export_model(recipe(), tmp_path / "out", use_cache=False)
    assert not (tmp_path / "out").exists()


def test_layers_finds_what_the_outputs_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, "c1.weight", 1.004)
    export_model(recipe(), tmp_path / "passes", use_cache=False)
    with pytest.raises(ParityError, match=r"onnx-fp16: its outputs agree, a layer does not. The error enters at c1 "):
        export_model(recipe(layers=True), tmp_path / "out", use_cache=False)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("precision", ["fp32", "fp16", "bf16"])
def test_layers_are_said_and_kept_in_the_bundle(tmp_path: Path, precision: Any) -> None:
    said: list[str] = []
    bundle = export_model(
        recipe(precision=precision, layers=True),
        tmp_path / "out",
        use_cache=False,
        say=lambda step, text, warning: said.append(f"{step}: {text}"),
    )
    kept = json.loads(open_bundle(tmp_path / "out").read("layers.json"))
    assert [layer["value"] for layer in kept][:3] == ["c1", "mul", "tanh"]
    assert all(layer["excess"] <= 1 for layer in kept)
    assert sum(line.startswith("layers: ") for line in said) == (1 if precision == "fp32" else 2)
    bundle.verify()


def test_layers_look_at_pictures_behind_the_head(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engineworks.export import head

    right = head._normalising

    def wrong(*arguments: Any) -> Any:
        made, constants = right(*arguments)
        (std,) = [tensor for tensor in constants if tensor.name.endswith("_std")]
        std.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(std) * np.float32(1.0001), std.name))
        return made, constants

    asked = recipe(precision="fp32", layers=True, input="uint8")
    export_model(asked, tmp_path / "right", use_cache=False)
    monkeypatch.setattr(head, "_normalising", wrong)
    with pytest.raises(ParityError, match=r"The error enters at preprocessing \(input_normalised\)"):
        export_model(asked, tmp_path / "out", use_cache=False)


def test_an_onnx_file_has_no_layers_to_be_held_against(tmp_path: Path) -> None:
    export_model(recipe(precision="fp32"), tmp_path / "first", use_cache=False)
    (tmp_path / "net.onnx").write_bytes((tmp_path / "first" / "model.onnx").read_bytes())
    with pytest.raises(ExportError, match="--layers: an ONNX file has no PyTorch layers"):
        export_model(recipe(model=str(tmp_path / "net.onnx"), layers=True), tmp_path / "out", use_cache=False)


def layer(**more: Any) -> Layer:
    fields: dict[str, Any] = {"value": "conv", "module": "m", "through": (), "db": 60.0, "alone_db": 70.0}
    fields |= {"channel": 1, "channels": 8, "channel_db": 50.0, "excess": 0.5}
    return Layer(**fields | more)


def test_where_no_layer_alone_is_wrong_that_is_said() -> None:
    assert blame([layer()]) == " Each layer alone agrees with PyTorch's: it is what they add up to."
    assert blame([]) == ""


def test_not_a_number_is_wrong_and_written_as_null() -> None:
    assert layer(excess=float("nan")).wrong
    assert json.loads(as_json([layer(db=float("inf"), alone_db=float("-inf"))]))[0]["alone_db"] is None


@pytest.mark.parametrize("quality", ["fast", pytest.param("high", marks=pytest.mark.slow)])
def test_int8_graphs_are_looked_at_as_the_original_whatever_was_shifted_and_equalised(
    tmp_path: Path, quality: Any
) -> None:
    """Every channel of this net is as loud as its number: without the factors, every layer would be blamed."""
    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    net = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.Flatten(),\n"
        "                        nn.Linear(32 * 16, 10))\n"
        "    with torch.no_grad():\n        net[0].weight *= torch.arange(1, 33.0)[:, None, None, None] / 8\n"
        "    return net\n"
    )
    rows = np.random.default_rng(0).standard_normal((32, 3, 8, 8)).astype(np.float32)
    np.savez(tmp_path / "rows.npz", input=rows)
    asked = Recipe(
        f"{tmp_path / 'net.py'}:make", precision="int8", shapes=(InputSpec("", (3, 8, 8)),), engine="none", layers=True,
        calib_data=str(tmp_path / "rows.npz"), quality=quality, batch=Batch(1, 2, 4),
    )  # fmt: skip
    said: list[str] = []
    export_model(
        asked, tmp_path / "out", use_cache=False, say=lambda step, text, warning: said.append(f"{step}: {text}")
    )
    assert any(line.startswith("layers: int8: 6 values") for line in said)
    kept = json.loads((tmp_path / "out" / "layers.json").read_text())
    assert max(layer["excess"] for layer in kept) < 1
    assert all(layer["db"] > 25 for layer in kept)


def test_without_the_factors_that_graph_would_be_blamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from engineworks.export import looking

    right = compare_layers
    monkeypatch.setattr(looking, "compare_layers", lambda *arguments: right(*arguments[:6]))
    with pytest.raises(ParityError, match="its outputs agree, a layer does not"):
        test_int8_graphs_are_looked_at_as_the_original_whatever_was_shifted_and_equalised(tmp_path, "fast")


def test_where_no_value_can_be_compared_that_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ladder, "look", lambda *arguments: [])
    with pytest.raises(ExportError, match="--layers: onnx-fp32 has no value of floating point that PyTorch has too"):
        export_model(recipe(layers=True), tmp_path / "out", use_cache=False)


def test_what_stands_before_the_network_excuses_nothing_of_its_first_layer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures of up to 255 are normalised to about 1: rounding that matters there is none in the first layer."""
    spoil(monkeypatch, "c1.weight", 1.004)
    with pytest.raises(ParityError, match=r"The error enters at c1 \(c1\)"):
        export_model(recipe(layers=True, input="uint8"), tmp_path / "out", use_cache=False)
