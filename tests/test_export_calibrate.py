"""export-model --int8: from images to a proven bundle, on trained LeNet-5 and real digits; what is wrong is refused."""

import importlib.util
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from PIL import Image

from engineworks import runtime
from engineworks.calibration.lint import lint
from engineworks.export.cli import main as export_main
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.models.samples import digits
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import ExportError
from engineworks.runtime.inspect import main as inspect_main
from engineworks.runtime.manifest import Batch

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
IMAGES, LABELS = digits()
HELD_OUT = Path(__file__).parent / "data" / "held_out_digits.npz"
PLAIN = Recipe("lenet5", "int8", batch=Batch(1, 4, 8), engine="none", calib_data="-", calib_images=40)


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEWORKS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        yield


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Fifty digits as PNG files in class sub-folders."""
    root = tmp_path_factory.mktemp("digits")
    for number, (image, label) in enumerate(zip(IMAGES[:50], LABELS, strict=False)):
        (root / str(label)).mkdir(exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def digit_arrays(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A hundred digits as LeNet-5 takes them."""
    kept = tmp_path_factory.mktemp("arrays") / "digits.npy"
    with runtime.load(Path(__file__).parent / "data" / "lenet5-fp16", device="cpu") as model:
        recipe = runtime.Preprocessing.from_json(model.manifest.preprocessing or {})
    np.save(kept, runtime.preprocess(list(IMAGES[:100]), recipe))
    return kept


@pytest.fixture(scope="module")
def made(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    engine: Any = "rtx" if RTX else "none"
    recipe = replace(PLAIN, calib_data=str(folder), engine=engine)
    return export_model(recipe, tmp_path_factory.mktemp("made") / "b", use_cache=False)


def refused(recipe: Recipe, tmp_path: Path) -> str:
    with pytest.raises(ExportError) as caught:
        export_model(recipe, tmp_path / "out", use_cache=False)
    assert not (tmp_path / "out").exists()
    return str(caught.value)


def graph_of(bundle: Bundle) -> onnx.ModelProto:
    graph: onnx.ModelProto = onnx.ModelProto.FromString(bundle.read("model.onnx"))
    return graph


def test_the_layers_that_int8_suits_compute_in_it_and_the_rest_in_fp16(made: Bundle) -> None:
    assert made.manifest.precision.realised == {"float16": 1, "int8": 3}  # 1 → 6 channels
    graph = graph_of(made)
    onnx.checker.check_model(graph, full_check=True)
    assert lint(graph) == []
    kept = {t.name for t in graph.graph.initializer if t.data_type == onnx.TensorProto.INT8}
    assert [name for name in kept if name.endswith("int8")] or kept


def test_the_engine_computes_in_int8_what_the_graph_does(made: Bundle) -> None:
    if not RTX:
        pytest.skip("tensorrt_rtx is not installed")
    (engine,) = made.manifest.engines
    int8 = sum(number for kind, number in engine.layer_types.items() if kind.endswith(" int8"))
    assert int8 == made.manifest.precision.realised["int8"]


def test_every_rung_is_there_at_every_batch(made: Bundle) -> None:
    found = {(rung.candidate, rung.batch) for rung in made.manifest.parity}
    assert found == {(name, size) for name in ("onnx-fp32", "onnx-int8", "onnx-int8-cpu") for size in (1, 4, 8)}
    for rung in made.manifest.parity:
        assert rung.sqnr_db is None or rung.sqnr_db >= rung.required_db
    assert min(rung.sqnr_db or 99 for rung in made.manifest.parity if rung.candidate == "onnx-int8") > 40


@pytest.mark.parametrize("name", ["model.onnx", "cpu.onnx"])
def test_digits_that_nobody_has_seen_are_read_as_well_as_in_float32(made: Bundle, name: str, tmp_path: Path) -> None:
    float32 = export_model(replace(PLAIN, precision="fp32", calib_data=None, calib_images=128), tmp_path / "f")
    with np.load(HELD_OUT, allow_pickle=False) as data:
        images, labels = data["images"][:300], data["labels"][:300]
    graph = {**made.manifest.graph, "cpu": name}
    other = Bundle(made.path, replace(made.manifest, graph=graph))
    right = []
    for bundle in (float32, other):
        session = runtime.backend.open_bundle_session(bundle, device="cpu")
        inputs = runtime.preprocess(list(images), runtime.Preprocessing.from_json(made.manifest.preprocessing or {}))
        answers = np.concatenate([session.run({"input": inputs[i : i + 8]}, ["output"])[0] for i in range(0, 300, 8)])
        right.append(int((answers.argmin(axis=1) == labels).sum()))
    assert abs(right[0] - right[1]) <= 1


def test_the_cpu_runs_the_twin_and_answers_as_its_rung_says(made: Bundle) -> None:
    with runtime.load(made.path, device="cpu") as model, np.load(made.path / "reference.npz") as kept:
        answers, truth = model.infer(kept["input:input"]), kept["output:output"]
    rung = next(r for r in made.manifest.parity if r.candidate == "onnx-int8-cpu" and r.batch == 8)
    assert rung.sqnr_db is not None
    assert abs(sqnr(truth, np.asarray(answers)) - rung.sqnr_db) < 0.5  # the same kernels, other threads


def test_the_bundle_tells_why_each_tensor_is_quantised_or_not(made: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_main([str(made.path), "--why"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith("calibrated on 30 images (40 of 50 pictures of the folder")
    assert any(line.startswith("  float  ") and "[small channels]" in line for line in lines)
    assert any(line.startswith("  int8   ") and "(scale 0." in line for line in lines)
    assert inspect_main([str(Path(__file__).parent / "data" / "lenet5-fp16"), "--why"]) == 1
    assert "--why tells of INT8; this bundle is fp16" in capsys.readouterr().err


def test_the_same_images_give_the_same_bundle_byte_for_byte(made: Bundle, folder: Path, tmp_path: Path) -> None:
    again = export_model(replace(PLAIN, calib_data=str(folder)), tmp_path / "again", use_cache=False)
    for name in ("model.onnx", "cpu.onnx", "calibration.json", "reference.npz"):
        assert again.read(name) == made.read(name), name


def test_what_was_observed_is_kept_and_used_again_and_a_stale_one_is_refused(folder: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept.json"
    recipe = replace(PLAIN, calib_data=str(folder), calib_cache=str(kept))
    told: list[str] = []
    first = export_model(recipe, tmp_path / "a", use_cache=False)
    second = export_model(recipe, tmp_path / "b", use_cache=False, say=lambda step, text, warning: told.append(text))
    assert "what 30 images showed, from kept.json" in told
    assert first.read("model.onnx") == second.read("model.onnx")
    assert "made with other images" in refused(replace(recipe, calib_images=20), tmp_path)
    assert "made with another method" in refused(replace(recipe, calib_method="mse"), tmp_path)
    content = json.loads(kept.read_text())
    content["count"] = 31
    kept.write_text(json.dumps(content))
    assert "was edited or cut" in refused(recipe, tmp_path)


def test_uint8_pictures_go_in_and_the_same_digits_come_out(folder: Path, tmp_path: Path) -> None:
    bundle = export_model(replace(PLAIN, calib_data=str(folder), input="uint8"), tmp_path / "u", use_cache=False)
    assert bundle.manifest.inputs[0].dtype == "uint8"
    with runtime.load(bundle.path, device="cpu") as model:
        found = [best[0].index for best in model.classify(list(IMAGES[100:160]), k=1)]
    assert sum(index == label for index, label in zip(found, LABELS[100:160], strict=True)) >= 57


@pytest.mark.parametrize(
    ("changes", "precisions"),
    [
        ({"int8_rest": "fp32"}, {"float32": 1, "int8": 3}),
        ({"quality": "fast"}, {"float16": 1, "int8": 3}),
        ({"quality": "high", "fp16_share": 0.0}, {"float16": 1, "int8": 3}),
        ({"calib_method": "percentile", "quality": "fast"}, {"float16": 1, "int8": 3}),
    ],
)
def test_the_flags_do_what_they_say(
    changes: dict[str, Any], precisions: dict[str, int], folder: Path, tmp_path: Path
) -> None:
    bundle = export_model(replace(PLAIN, calib_data=str(folder), **changes), tmp_path / "b", use_cache=False)
    assert bundle.manifest.precision.realised == precisions
    content = json.loads(bundle.read("calibration.json"))
    if "calib_method" in changes:
        assert content["chosen"] == content["method"] == "percentile"


def test_a_second_export_is_a_cache_hit_and_another_image_is_none(folder: Path, tmp_path: Path) -> None:
    told: list[str] = []
    say: Callable[[str, str, bool], None] = lambda step, text, warning: told.append(step)  # noqa: E731
    recipe = replace(PLAIN, calib_data=str(folder), quality="fast")
    export_model(recipe, tmp_path / "1", say=say)
    assert "cache" not in told
    export_model(recipe, tmp_path / "2", say=say)
    assert told.count("cache") == 1
    extra = tmp_path / "more"
    extra.mkdir()
    for number, image in enumerate(IMAGES[60:80]):
        Image.fromarray(image).save(extra / f"{number}.png")
    export_model(replace(recipe, calib_data=str(extra)), tmp_path / "3", say=say)
    assert told.count("cache") == 1


def test_images_prepared_otherwise_than_the_network_wants_are_told_and_noted(made: Bundle, tmp_path: Path) -> None:
    recipe = runtime.Preprocessing.from_json(made.manifest.preprocessing or {})
    wrong = tmp_path / "arrays.npy"
    np.save(wrong, runtime.preprocess(list(IMAGES[:40]), recipe) * recipe.std[0] + recipe.mean[0])  # 0 to 1
    told: list[str] = []
    bundle = export_model(
        replace(PLAIN, calib_data=str(wrong), quality="fast"), tmp_path / "b", use_cache=False,
        say=lambda step, text, warning: told.append(text) if warning else None,
    )  # fmt: skip
    assert any(text.startswith("calibration images: unnormalised. ") for text in told)
    assert any(note.startswith("calibration images: unnormalised. ") for note in bundle.manifest.notes)
    assert not any("calibration images" in note for note in made.manifest.notes)


def test_too_few_images_and_a_missing_folder_end_before_anything_is_built(folder: Path, tmp_path: Path) -> None:
    few = tmp_path / "few"
    few.mkdir()
    for number in range(5):
        Image.fromarray(IMAGES[number]).save(few / f"{number}.png")
    assert "expected 8 images or more, got 5" in refused(replace(PLAIN, calib_data=str(few)), tmp_path)
    assert "expected an existing folder" in refused(replace(PLAIN, calib_data="nowhere.txt"), tmp_path)


@pytest.mark.parametrize(("batch", "count"), [(8, 16), (20, 50), (32, 100)])
def test_a_fixed_batch_holds_out_as_many_images_as_it_takes(
    batch: int, count: int, digit_arrays: Path, tmp_path: Path
) -> None:
    recipe = replace(PLAIN, batch=Batch(batch, batch, batch), calib_data=str(digit_arrays), calib_images=count)
    bundle = export_model(replace(recipe, quality="fast"), tmp_path / "b", use_cache=False)
    assert json.loads(bundle.read("calibration.json"))["count"] == count - max(count // 4, count // (count // batch))
    assert {rung.batch for rung in bundle.manifest.parity} == {batch}


def test_too_few_images_for_a_fixed_batch_are_refused_before_anything_is_computed(
    digit_arrays: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engineworks.export.pipeline._measure", None)  # the first that asks the original
    recipe = replace(PLAIN, batch=Batch(9, 9, 9), calib_data=str(digit_arrays), calib_images=17)
    said = refused(recipe, tmp_path)
    assert "18 or more are needed, 9 to fit on and 9 held out, for the network's batch is fixed; got 17." in said
    assert said.endswith("Give as many and --calib-images 18, or another --batch.")


def test_broken_images_that_leave_a_fixed_batch_unfilled_are_refused_before_the_rest_is_observed(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engineworks.export.calibrate.observe", None)
    broken = tmp_path / "broken"
    broken.mkdir()
    for number, image in enumerate(IMAGES[:40]):
        Image.fromarray(image).save(broken / f"{number:02}.png")
    (broken / "01.png").write_bytes(b"")
    said = refused(replace(PLAIN, batch=Batch(20, 20, 20), calib_data=str(broken)), tmp_path)
    assert "20 held out: 19 of them can be read, the fixed batch takes 20." in said


def test_an_int8_graph_that_keeps_too_little_is_refused_with_its_figure(folder: Path, tmp_path: Path) -> None:
    """The KL search clips what LeNet-5's distances need: 7.2 dB."""
    recipe = replace(PLAIN, calib_data=str(folder), calib_method="entropy", quality="fast")
    said = refused(recipe, tmp_path)
    assert "int8 cannot carry this network as it is: it keeps 7." in said and "Try --quality high" in said


def test_a_network_of_layers_too_small_for_int8_is_refused(tmp_path: Path, folder: Path) -> None:
    file = tmp_path / "net.py"
    file.write_text(
        "from torch import nn\n"
        "def make():\n"
        "    return nn.Sequential(nn.Conv2d(1, 3, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((16, 1, 8, 8)).astype(np.float32))
    from engineworks.export.inputs import InputSpec

    recipe = replace(
        PLAIN, model=f"{file}:make", shapes=(InputSpec("", (1, 8, 8)),), calib_data=str(tmp_path / "x.npy")
    )
    assert "no layer of this network suits int8" in refused(recipe, tmp_path)


UP = """
from torch import nn
def make():
    stem, up = nn.Conv2d(3, 16, 3, padding=1), nn.ConvTranspose2d(16, 16, 2, 2)
    return nn.Sequential(stem, nn.ReLU(), up, nn.ReLU(), nn.Conv2d(16, 16, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
"""


@pytest.mark.parametrize("engine", [pytest.param("rtx", marks=pytest.mark.skipif(not RTX, reason="no rtx")), "none"])
def test_a_transposed_convolution_is_int8_but_where_rtx_would_compute_it_in_float16(
    engine: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "net.py").write_text(UP)
    np.save(tmp_path / "x.npy", np.random.default_rng(0).standard_normal((16, 3, 12, 12)).astype(np.float32))
    flags = f"--int8 --shape 3x12x12 --quality fast --no-cache --batch 1:2:4 --engine {engine} --calib-data".split()
    data, out = str(tmp_path / "x.npy"), str(tmp_path / "out")
    assert export_main([f"{tmp_path / 'net.py'}:make", *flags, data, "-o", out]) == 0
    said = capsys.readouterr().err
    realised = runtime.open_bundle(Path(out)).manifest.precision.realised
    assert inspect_main([out, "--why"]) == 0
    lines = capsys.readouterr().out.splitlines()
    float_weights = [line for line in lines if line.startswith("  float") and ": weight " in line]
    if engine == "none":
        assert realised == {"int8": 3} and float_weights == []
    else:
        assert realised == {"float16": 1, "int8": 2}
        assert "[transposed] TensorRT-RTX computes int8 transposed" in "".join(float_weights)
        assert "all 3 weighted layers as asked" in said and "stay in the float type: TensorRT-RTX computes" in said


def test_the_command_line_says_what_is_missing(capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main(["lenet5", "--int8"]) == 2
    assert "--int8 needs --calib-data" in capsys.readouterr().err
    assert export_main(["lenet5", "--fp16", "--calib-data", "x"]) == 2
    assert "--calib-data is for --int8 alone" in capsys.readouterr().err
    assert export_main(["lenet5", "--int8", "--calib-data", "x", "--fp16-share", "2"]) == 2
    assert "expected 0 to 1" in capsys.readouterr().err
