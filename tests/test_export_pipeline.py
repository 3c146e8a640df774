"""The whole job in one process: every fact of a bundle is held against the bundle itself."""

import hashlib
import importlib.util
import io
import json
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import pytest
import torch
from onnx import numpy_helper

from engineworks import runtime
from engineworks.export import cache, pipeline
from engineworks.export.engine import Choice, read_plan_header
from engineworks.export.inputs import parse_shape
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.models import NETWORKS, find
from engineworks.models.samples import digits, photograph
from engineworks.models.weights import build_network, read_checkpoint
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.compare import sqnr
from engineworks.runtime.errors import BundleError, EngineError, ExportError, ParityError
from engineworks.runtime.manifest import Batch

RTX = importlib.util.find_spec("tensorrt_rtx") is not None
NUMPY = {1: "float32", 10: "float16", 16: "bfloat16"}  # by ONNX's number
PRECISIONS: dict[Any, str] = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache of this file's own, empty at the start."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("cache")
        patch.setenv("ENGINEWORKS_CACHE", str(folder))
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        yield folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bundle]:
    """LeNet-5 in every precision; with the RTX engine where its compiler is installed."""
    folder = tmp_path_factory.mktemp("bundles")
    engine: Any = "rtx" if RTX else "none"
    return {
        precision: export_model(
            Recipe("lenet5", precision, engine=engine),
            folder / precision,
            use_cache=False,
        )
        for precision in PRECISIONS
    }


@pytest.fixture(params=sorted(PRECISIONS))
def made(request: pytest.FixtureRequest, bundles: Mapping[str, Bundle]) -> Bundle:
    """One bundle after the other."""
    return bundles[request.param]


@pytest.fixture(scope="module")
def lenet5() -> torch.nn.Module:
    network = find("lenet5")
    assert network.shipped_path is not None
    return build_network(network, read_checkpoint(network.shipped_path))


def graph_of(bundle: Bundle) -> Any:
    return onnx.ModelProto.FromString(bundle.read("model.onnx"))


def reference_of(bundle: Bundle) -> dict[str, npt.NDArray[Any]]:
    with np.load(io.BytesIO(bundle.read("reference.npz")), allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


def test_the_graph_is_what_the_manifest_says(made: Bundle) -> None:
    graph, manifest = graph_of(made), made.manifest
    onnx.checker.check_model(graph, full_check=True)
    assert manifest.graph["nodes"] == len(graph.graph.node)
    assert manifest.graph["opset"] == graph.opset_import[0].version
    floats = [tensor for tensor in graph.graph.initializer if tensor.data_type in NUMPY]
    assert manifest.graph["weights"] == sum(numpy_helper.to_array(tensor).size for tensor in floats)
    assert {NUMPY[tensor.data_type] for tensor in floats} == {PRECISIONS[manifest.precision.asked]}
    weighted = Counter(node.op_type for node in graph.graph.node if node.op_type in {"Conv", "Gemm", "MatMul"})
    assert manifest.precision.realised == {PRECISIONS[manifest.precision.asked]: weighted.total()}
    for kind, values in (("inputs", graph.graph.input), ("outputs", graph.graph.output)):
        (tensor,), (value,) = getattr(manifest, kind), values
        axes = [axis.dim_param or axis.dim_value for axis in value.type.tensor_type.shape.dim]
        assert (tensor.name, tensor.dtype, list(tensor.shape)) == (value.name, "float32", axes)
        assert axes[0] == "batch"


def test_the_model_is_what_the_manifest_says(made: Bundle, lenet5: torch.nn.Module) -> None:
    network, manifest = find("lenet5"), made.manifest
    assert manifest.model.parameters == sum(parameter.numel() for parameter in lenet5.parameters()) == 60_000
    assert (manifest.model.name, manifest.model.paper) == (network.name, network.paper)
    assert network.shipped_path is not None
    assert manifest.weights.sha256 == hashlib.sha256(network.shipped_path.read_bytes()).hexdigest()
    assert manifest.weights.trained
    assert manifest.labels == tuple("0123456789")
    assert manifest.scores == "distances"
    assert manifest.batch == Batch(1, 8, 32)
    assert manifest.preprocessing == network.preprocessing
    assert manifest.tools == cache.versions()
    assert manifest.created == "2023-11-14T22:13:20+00:00"


def test_every_file_is_listed_with_its_digest_and_no_other_is_there(made: Bundle) -> None:
    files = {str(file.relative_to(made.path)) for file in made.path.rglob("*") if file.is_file()}
    assert files == {*made.manifest.files, "manifest.json"}
    for name, record in made.manifest.files.items():
        content = (made.path / name).read_bytes()
        assert (record.bytes, record.sha256) == (len(content), hashlib.sha256(content).hexdigest())


def test_nothing_of_this_machine_is_in_it(made: Bundle) -> None:
    texts = [(made.path / "manifest.json").read_bytes(), made.read("model.onnx"), made.read("reference.npz")]
    here = [str(Path.home()), str(Path(__file__).parent.parent), str(made.path.parent), "site-packages", 'File "']
    assert not [word for word in here for text in texts if word.encode() in text]


def test_the_reference_is_what_pytorch_answers(made: Bundle, lenet5: torch.nn.Module) -> None:
    arrays = reference_of(made)
    assert sorted(arrays) == ["input:input", "output:output"]
    with torch.no_grad():
        answers = lenet5(torch.from_numpy(arrays["input:input"])).numpy()
    assert sqnr(answers, arrays["output:output"]) > 120  # the same sums, perhaps by another number of threads


def test_every_rung_says_what_onnx_runtime_finds_again(made: Bundle) -> None:
    """The figures are recomputed from the files alone, without torch."""
    arrays = reference_of(made)
    last = made.manifest.parity[-1].candidate
    rungs = {rung.batch: rung for rung in made.manifest.parity if rung.candidate == last}
    assert sorted(rungs) == [1, 8, 32]
    with runtime.load(made.path, device="cpu") as session:
        for batch, rung in rungs.items():
            index = np.arange(batch) % 8
            expected, got = arrays["output:output"][index], session.infer(arrays["input:input"][index])
            assert rung.sqnr_db is not None
            # float32's own noise moves from run to run and thread to thread; the half types' hardly does
            assert abs(sqnr(expected, got) - rung.sqnr_db) < (6 if rung.candidate == "onnx-fp32" else 0.2)
            assert sqnr(expected, got) >= rung.required_db
            assert rung.top1 == 1


def test_the_ladder_has_every_rung_at_every_batch(bundles: Mapping[str, Bundle]) -> None:
    steps = {
        precision: [(r.candidate, r.batch) for r in bundle.manifest.parity] for precision, bundle in bundles.items()
    }
    plain = [("onnx-fp32", batch) for batch in (1, 8, 32)]
    assert steps["fp32"] == plain
    assert steps["fp16"] == plain + [("onnx-fp16", batch) for batch in (1, 8, 32)]
    assert steps["bf16"] == plain + [("onnx-bf16-emulated", batch) for batch in (1, 8, 32)]


def test_only_bf16_carries_a_graph_for_the_cpu(bundles: Mapping[str, Bundle]) -> None:
    for precision, bundle in bundles.items():
        assert ("cpu.onnx" in bundle.manifest.files) == (precision == "bf16")
        assert bundle.manifest.graph["cpu"] == ("cpu.onnx" if precision == "bf16" else "model.onnx")


def test_classify_agrees_with_pytorch_on_every_digit(made: Bundle, lenet5: torch.nn.Module) -> None:
    images, labels = digits()
    with runtime.load(made.path, device="cpu") as session:
        predictions = [row[0] for row in session.classify(list(images), k=1)]
        prepared = runtime.preprocess(
            list(images), runtime.Preprocessing.from_json(dict(made.manifest.preprocessing or {}))
        )
    with torch.no_grad():
        distances = lenet5(torch.from_numpy(prepared)).numpy()
    two = np.sort(distances, axis=1)[:, :2]
    clear = two[:, 1] - two[:, 0] > 4  # a rounding moves a distance by less than 2 (bf16's largest difference is 1.5)
    found = np.array([prediction.index for prediction in predictions])
    assert clear.sum() > 180
    assert np.array_equal(found[clear], distances.argmin(1)[clear])
    assert abs((found == labels).mean() - (distances.argmin(1) == labels).mean()) <= 0.005  # one digit of 200


@pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
def test_the_engine_is_what_the_manifest_says(made: Bundle) -> None:
    (record,) = made.manifest.engines
    plan = made.read(record.file)
    header = read_plan_header(plan)
    assert record.flavour == "rtx"
    assert header is not None, "a plan of another RTX than 1.7: its header is unknown"
    assert header.targets == record.targets
    assert record.version == header.version
    assert record.file == f"engines/rtx-{'-'.join(record.targets)}.engine"
    asked = made.manifest.precision.asked
    assert set(record.layer_types) == {f"convolution {asked}", f"matrix_multiply {asked}"}
    assert sum(record.layer_types.values()) == sum(made.manifest.precision.realised.values())
    if asked == "bf16":
        assert "sm75" not in record.targets
        assert any(note.startswith("engine without sm75") for note in made.manifest.notes)


def test_two_exports_differ_in_nothing_but_the_engines_bytes(bundles: Mapping[str, Bundle], tmp_path: Path) -> None:
    recipe = Recipe("lenet5", "fp16", engine="rtx" if RTX else "none")
    again, first = export_model(recipe, tmp_path / "again", use_cache=False), bundles["fp16"]
    for name in ("model.onnx", "reference.npz"):
        assert again.read(name) == first.read(name)
    contents = [json.loads((bundle.path / "manifest.json").read_text()) for bundle in (again, first)]
    for content in contents:
        for name in [name for name in content["files"] if name.endswith(".engine")]:
            del content["files"][name]
        del content["digest"], content["created"]
        for rung in content["parity"]:
            if rung["candidate"] == "onnx-fp32":
                rung.update(dict.fromkeys(("max_abs", "max_rel", "sqnr_db", "cosine")))
    assert contents[0] == contents[1]


def test_without_an_engine_it_is_byte_identical_whole(tmp_path: Path) -> None:
    recipe = Recipe("lenet5", "fp16", engine="none", batch=Batch(1, 2, 3))
    first, second = (export_model(recipe, tmp_path / name, use_cache=False) for name in ("a", "b"))
    for name in (*first.manifest.files, "manifest.json"):
        assert (first.path / name).read_bytes() == (second.path / name).read_bytes(), name


def test_no_engine_is_said_in_the_manifest(tmp_path: Path) -> None:
    said: list[tuple[str, str]] = []
    recipe = Recipe("lenet5", engine="none", batch=Batch(2, 2, 2))
    bundle = export_model(recipe, tmp_path / "out", use_cache=False, say=lambda *line: said.append(line[:2]))
    assert bundle.manifest.engines == ()
    assert [step for step, _ in said] == ["weights", "build", "inputs", "graph", "onnx-fp32", "engine"]
    assert "none" in dict(said)["engine"]
    assert bundle.manifest.inputs[0].shape[0] == 2, "a batch that is fixed is written as that"


def test_untrained_weights_are_said_everywhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from engineworks.runtime.inspect import main as inspect

    monkeypatch.setitem(NETWORKS, "lenet5", replace(NETWORKS["lenet5"], shipped=None))
    said: list[str] = []
    recipe = Recipe("lenet5", engine="none")
    bundle = export_model(recipe, tmp_path / "out", use_cache=False, say=lambda step, text, warning: said.append(text))
    assert said[0].startswith("UNTRAINED (seed 0)")
    assert not bundle.manifest.weights.trained
    assert "UNTRAINED" in bundle.manifest.summary
    assert inspect([str(bundle.path)]) == 0
    assert "UNTRAINED weights: its answers mean nothing" in capsys.readouterr().out
    with runtime.load(bundle.path) as session:
        assert "UNTRAINED" in repr(session)


def test_a_second_export_is_copied_from_the_cache(tmp_path: Path) -> None:
    recipe, said = Recipe("lenet5", engine="none", batch=Batch(1, 3, 3)), list[tuple[str, str]]()
    first = export_model(recipe, tmp_path / "first")
    second = export_model(recipe, tmp_path / "second", say=lambda *line: said.append(line[:2]))
    assert [step for step, _ in said] == ["weights", "cache"]
    assert (first.path / "manifest.json").read_bytes() == (second.path / "manifest.json").read_bytes()
    second.verify()
    said.clear()
    export_model(recipe, tmp_path / "third", use_cache=False, say=lambda *line: said.append(line[:2]))
    assert "cache" not in dict(said)


def test_a_cache_that_cannot_be_written_is_said_and_no_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(tmp_path / "file"))
    said: list[tuple[str, str]] = []
    recipe = Recipe("lenet5", engine="none", batch=Batch(2, 2, 2))
    export_model(recipe, tmp_path / "out", say=lambda *line: said.append(line[:2])).verify()
    assert dict(said)["cache"].startswith("not kept: ")


def test_a_folder_in_the_way_is_refused_before_any_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("work was begun")

    monkeypatch.setattr(pipeline, "resolve", never)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.txt").write_text("mine")
    with pytest.raises(BundleError, match=r"exists\. Pass --force"):
        export_model(Recipe("lenet5"), tmp_path / "out")
    with pytest.raises(BundleError, match="holds something other than a bundle"):
        export_model(Recipe("lenet5"), tmp_path / "out", force=True)
    with pytest.raises(BundleError, match=r"does not exist\. Make it first"):
        export_model(Recipe("lenet5"), tmp_path / "no" / "out")
    assert (tmp_path / "out" / "thesis.txt").read_text() == "mine"


def fail(error: Exception) -> Any:
    def stop(*_: Any, **__: Any) -> Any:
        raise error

    return stop


@pytest.mark.parametrize(
    ("where", "error"),
    [
        ("engineworks.export.prove.export_graph", ExportError("no graph")),
        ("engineworks.export.prove.prove", ParityError("no agreement")),
        ("engineworks.export.pipeline.write_bundle", BundleError("no room")),
        ("engineworks.export.describe.manifest", KeyboardInterrupt()),
    ],
)
def test_a_failure_on_the_way_leaves_nothing_and_the_old_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, bundles: Mapping[str, Bundle], where: str, error: Exception
) -> None:
    recipe = Recipe("lenet5", engine="none", batch=Batch(2, 2, 2))
    old = export_model(recipe, tmp_path / "old")
    before = (old.path / "manifest.json").read_bytes()
    monkeypatch.setattr(where, fail(error))
    for name, force in (("new", False), ("old", True)):
        with pytest.raises(type(error)):
            export_model(recipe, tmp_path / name, force=force, use_cache=False)
    assert [entry.name for entry in tmp_path.iterdir()] == ["old"]
    assert (old.path / "manifest.json").read_bytes() == before


@pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
def test_a_compiler_that_refuses_stops_the_export(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "compile_engine", fail(EngineError("the compiler says no")))
    with pytest.raises(EngineError, match="the compiler says no"):
        export_model(Recipe("lenet5", engine="rtx", batch=Batch(2, 2, 2)), tmp_path / "out", use_cache=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
def test_an_engine_that_computes_in_another_type_is_no_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """FP16 asked, FP32 got, exit 0: the failure this exists against."""
    real: Any = vars(pipeline)["compile_engine"]

    def other(content: bytes, **options: Any) -> Any:
        return replace(real(content, **options), layer_types={"convolution fp32": 3, "matrix_multiply fp16": 1})

    monkeypatch.setattr(pipeline, "compile_engine", other)
    with pytest.raises(ExportError, match="asked for fp16, but the compiler reads 3 convolution fp32"):
        export_model(Recipe("lenet5", "fp16", engine="rtx", batch=Batch(2, 2, 2)), tmp_path / "out", use_cache=False)
    assert list(tmp_path.iterdir()) == []


def test_force_replaces_a_bundle_and_nothing_is_left_of_the_old(tmp_path: Path) -> None:
    bf16, fp32 = (Recipe("lenet5", kind, engine="none", batch=Batch(2, 2, 2)) for kind in ("bf16", "fp32"))
    export_model(bf16, tmp_path / "out")
    bundle = export_model(fp32, tmp_path / "out", force=True)
    bundle.verify()
    assert sorted(file.name for file in (tmp_path / "out").iterdir()) == [
        "manifest.json",
        "model.onnx",
        "reference.npz",
        "report.html",
    ]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_a_simplifier_is_named_and_the_modules_stay(tmp_path: Path) -> None:
    recipe = Recipe("lenet5", "fp16", engine="none", simplify="onnxslim", batch=Batch(2, 2, 2))
    bundle = export_model(recipe, tmp_path / "out", use_cache=False)
    assert bundle.manifest.graph["simplifier"] == "onnxslim"
    graph = graph_of(bundle)
    assert not graph.graph.metadata_props
    convolutions = [node for node in graph.graph.node if node.op_type == "Conv"]
    assert [prop.value for node in convolutions for prop in node.metadata_props] == ["c1", "c3", "c5"]


@pytest.mark.filterwarnings("ignore")  # the libraries' own
def test_a_simplifier_that_moves_the_last_bits_is_refused(tmp_path: Path) -> None:
    """Here onnxsim multiplies the slope of the squashing function into the kernels."""
    recipe = Recipe("lenet5", engine="none", simplify="onnxsim", batch=Batch(2, 2, 2))
    with pytest.raises(ExportError, match="--simplify onnxsim changed the network's answers"):
        export_model(recipe, tmp_path / "out", use_cache=False)
    assert list(tmp_path.iterdir()) == []


def test_a_bundle_whose_compiler_failed_is_not_found_again_after_the_mend(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = Recipe("lenet5", batch=Batch(1, 2, 3))
    with monkeypatch.context() as broken:
        broken.setattr(pipeline, "choose_compiler", lambda *_, **__: Choice(None, ("rtx does not import: libnvrtc",)))
        said: list[tuple[str, str, bool]] = []
        first = export_model(recipe, tmp_path / "first", say=lambda *line: said.append(line))
        assert first.manifest.engines == ()
        assert ("engine", "none: rtx does not import: libnvrtc", True) in said
    assert len(export_model(recipe, tmp_path / "second").manifest.engines) == 1


def test_what_a_user_must_not_miss_is_said_again_on_a_hit(tmp_path: Path) -> None:
    recipe = Recipe("lenet5", batch=Batch(1, 2, 4), targets=("sm86",))
    for name in ("first", "second"):
        said = list[tuple[str, str, bool]]()
        export_model(recipe, tmp_path / name, say=lambda *line, said=said: said.append(line))
        assert any(step == "note" and "TF32" in text and warning for step, text, warning in said)


def test_a_hit_without_an_engine_says_so_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe("lenet5", batch=Batch(1, 2, 5))
    monkeypatch.setattr(pipeline, "choose_compiler", lambda *_, **__: Choice(None, ("rtx is not installed",)))
    monkeypatch.setattr(pipeline, "_failed", lambda *_: False)  # as where no compiler is installed
    export_model(recipe, tmp_path / "first")
    said: list[tuple[str, str, bool]] = []
    export_model(recipe, tmp_path / "second", say=lambda *line: said.append(line))
    assert [step for step, _, _ in said] == ["weights", "cache", "engine"]
    assert said[2][1].startswith("none in that bundle")
    assert said[2][2], "a warning, for --quiet too"


# --- pictures as they are


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Bundle]:
    """LeNet-5, grey and padded, taking pictures as they are, in every precision and at a fixed batch."""
    folder = tmp_path_factory.mktemp("raw")
    recipes = {name: Recipe("lenet5", name, engine="rtx" if RTX else "none", input="uint8") for name in PRECISIONS}
    recipes["fixed"] = replace(recipes["fp32"], batch=Batch(3, 3, 3), engine="none")
    return {name: export_model(recipe, folder / name, use_cache=False) for name, recipe in recipes.items()}


@pytest.mark.parametrize("name", ["fp32", "fp16", "bf16"])
def test_pictures_as_they_are_get_the_classes_of_prepared_ones(
    raw: Mapping[str, Bundle], bundles: Mapping[str, Bundle], name: str
) -> None:
    images = list(digits()[0][:64])
    with runtime.load(raw[name].path, device="cpu") as given, runtime.load(bundles[name].path, device="cpu") as plain:
        assert given.classify(images) == plain.classify(images), "the same five, with the same probabilities"
        scores = given.infer(given.preprocess(images[:32])), plain.infer(plain.preprocess(images[:32]))
    assert np.array_equal(*scores), "bit for bit"


def test_a_raw_bundle_says_what_it_takes(raw: Mapping[str, Bundle]) -> None:
    for name, bundle in raw.items():
        (tensor,) = bundle.manifest.inputs
        assert (tensor.dtype, tensor.shape) == ("uint8", (3 if name == "fixed" else "batch", 32, 32, 1))
        assert bundle.manifest.preprocessing is not None
        assert bundle.manifest.preprocessing["in_graph"] is True
        assert reference_of(bundle)["input:input"].dtype == np.uint8
        graph = graph_of(bundle)
        onnx.checker.check_model(graph, full_check=True)
        assert next(node for node in graph.graph.node).op_type == "Cast"
        bundle.verify()


def test_a_raw_bundle_of_a_fixed_batch_takes_any_number_of_pictures(
    raw: Mapping[str, Bundle], bundles: Mapping[str, Bundle]
) -> None:
    images = list(digits()[0][:7])
    with runtime.load(raw["fixed"].path, device="cpu") as fixed, runtime.load(bundles["fp32"].path) as free:
        found = [[prediction.index for prediction in row] for row in fixed.classify(images)]
        assert found == [[prediction.index for prediction in row] for row in free.classify(images)]


@pytest.mark.skipif(not RTX, reason="tensorrt_rtx is not installed")
def test_a_raw_graph_is_compiled_and_its_head_counts_as_no_layer(raw: Mapping[str, Bundle]) -> None:
    for name in PRECISIONS:
        (record,) = raw[name].manifest.engines
        assert set(record.layer_types) == {f"convolution {name}", f"matrix_multiply {name}"}


def test_a_head_that_normalises_in_another_way_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A planted fault: the graph's mean is off by one level of 255, which no picture shows to the eye."""
    from engineworks.export import head

    real: Any = vars(head)["_normalising"]

    def wrong(source: str, result: str, recipe: Any, taken: set[str]) -> Any:
        return real(source, result, replace(recipe, mean=tuple(value + 1 / 255 for value in recipe.mean)), taken)

    monkeypatch.setattr(head, "_normalising", wrong)
    for precision in ("fp32", "fp16"):
        with pytest.raises(ParityError, match=r"^onnx-fp32, batch 1, output output: "):
            export_model(Recipe("lenet5", precision, engine="none", input="uint8"), tmp_path / "out", use_cache=False)
    assert list(tmp_path.iterdir()) == []


# --- networks of one's own

COLOUR = """
import torch
from torch import nn


class Net(nn.Module):
    def __init__(self, classes=12):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 5, stride=3), nn.Conv2d(8, classes, 3)

    def forward(self, x):
        return self.second(torch.relu(self.first(x))).mean((2, 3)) * 20


class Random(Net):
    def forward(self, x):
        return super().forward(x) + torch.rand(len(x), 1)


class Whole(Net):
    def forward(self, x):
        return super().forward(x) - x.mean()
"""


@pytest.fixture
def own(tmp_path: Path) -> Recipe:
    (tmp_path / "net.py").write_text(COLOUR)
    return Recipe(
        f"{tmp_path}/net.py:Net",
        engine="none",
        shapes=(parse_shape("3x48x40"),),
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        batch=Batch(1, 2, 4),
    )


@pytest.mark.parametrize(
    "changes", [{}, {"resize": 64}, {"interpolation": "bicubic"}, {"mean": (0.5,), "std": (0.25,)}]
)
def test_a_photograph_is_classified_alike_both_ways(own: Recipe, tmp_path: Path, changes: dict[str, Any]) -> None:
    recipe = replace(own, **changes)
    plain = export_model(recipe, tmp_path / "plain")
    raw = export_model(replace(recipe, input="uint8"), tmp_path / "raw")
    pictures: list[Any] = [photograph(), photograph().read_bytes()]
    with runtime.load(plain.path, device="cpu") as a, runtime.load(raw.path, device="cpu") as b:
        assert a.classify(pictures) == b.classify(pictures)
        assert np.array_equal(a.infer(a.preprocess(pictures)), b.infer(b.preprocess(pictures)))
        assert b.preprocess(pictures).shape == (2, 48, 40, 3)


def test_labels_of_a_file_are_what_classify_says(own: Recipe, tmp_path: Path) -> None:
    (tmp_path / "names.txt").write_text("\n".join(f"kind {number}" for number in range(12)))
    bundle = export_model(replace(own, labels=str(tmp_path / "names.txt")), tmp_path / "out")
    with runtime.load(bundle.path, device="cpu") as session:
        (found,) = session.classify(photograph(), k=12)
    assert sorted(prediction.label for prediction in found) == sorted(f"kind {number}" for number in range(12))
    (tmp_path / "names.txt").write_text("one\ntwo")
    with pytest.raises(ExportError, match=r"^--labels: got 2 names for 12 classes"):
        export_model(replace(own, labels=str(tmp_path / "names.txt")), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_samples_of_a_file_are_what_the_bundle_is_compared_on(own: Recipe, tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((3, 3, 48, 40)).astype(np.float32)
    np.savez(tmp_path / "real.npz", input=rows)
    bundle = export_model(replace(own, samples=str(tmp_path / "real.npz")), tmp_path / "out")
    assert np.array_equal(reference_of(bundle)["input:input"], rows)


def test_samples_for_a_raw_bundle_are_pictures_as_they_are(own: Recipe, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (3, 48, 40, 3), np.uint8)
    np.savez(tmp_path / "real.npz", input=pixels)
    recipe = replace(own, samples=str(tmp_path / "real.npz"), input="uint8")
    assert np.array_equal(reference_of(export_model(recipe, tmp_path / "out"))["input:input"], pixels)
    np.savez(tmp_path / "real.npz", input=pixels.astype(np.float32))
    with pytest.raises(ExportError, match=r"expected input uint8 \(N, 48, 40, 3\)"):
        export_model(recipe, tmp_path / "other")


def test_changed_labels_or_samples_are_no_hit(tmp_path: Path) -> None:
    names, real = tmp_path / "names.txt", tmp_path / "real.npz"
    recipe = Recipe("lenet5", engine="none", batch=Batch(2, 2, 2), labels=str(names), samples=str(real))
    heard = []
    for number, (start, seed) in enumerate([("a", 0), ("a", 0), ("b", 0), ("b", 1)]):
        names.write_text("\n".join(f"{start}{index}" for index in range(10)))
        np.savez(real, input=np.random.default_rng(seed).standard_normal((2, 1, 32, 32)).astype(np.float32))
        said: list[str] = []
        bundle = export_model(recipe, tmp_path / str(number), say=lambda step, *_, said=said: said.append(step))
        heard.append("cache" in said)
        assert bundle.manifest.labels[0] == f"{start}0"
    assert heard == [False, True, False, False]


def test_randomness_is_told_from_answers_that_lean_on_the_batch(own: Recipe, tmp_path: Path) -> None:
    for name, error, message in (
        ("Random", ExportError, "otherwise from call to call: random numbers"),
        ("Whole", ParityError, r"depends on its whole batch\. Fix the batch"),
    ):
        with pytest.raises(error, match=message):
            export_model(replace(own, model=f"{tmp_path}/net.py:{name}"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_network_that_leans_on_its_batch_is_taken_at_a_fixed_one(own: Recipe, tmp_path: Path) -> None:
    recipe = replace(own, model=f"{tmp_path}/net.py:Whole", batch=Batch(4, 4, 4))
    assert export_model(recipe, tmp_path / "out").manifest.batch == Batch(4, 4, 4)


@pytest.mark.slow
def test_a_network_of_ours_takes_another_size_and_other_classes(tmp_path: Path) -> None:
    recipe = Recipe(
        "resnet18",
        engine="none",
        batch=Batch(1, 2, 2),
        shapes=(parse_shape("3x64x48"),),
        model_args=(("num_classes", 7),),
    )
    bundle = export_model(recipe, tmp_path / "out", use_cache=False)
    assert bundle.manifest.inputs[0].shape == ("batch", 3, 64, 48)
    assert bundle.manifest.outputs[0].shape == ("batch", 7)
    assert bundle.manifest.labels == ()
    with runtime.load(bundle.path, device="cpu") as session:
        assert len(session.classify(photograph(), k=9)[0]) == 7
