"""The budget's search from end to end: announced, told, cut off, refused; and on LeNet-5, which a bad range harms."""

import json
import os
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engineworks.calibration.budget import Drop, Search, most_evaluations, search
from engineworks.calibration.quantise import Quantised
from engineworks.export.budget import OnPart, Shop, drop_words, judge_twin, keep_within
from engineworks.export.cli import main as export_main
from engineworks.export.describe import STOPPED
from engineworks.export.judge import Judge
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.models.samples import digits
from engineworks.runtime.bundle import Bundle
from engineworks.runtime.errors import ExportError
from engineworks.runtime.inspect import main as inspect_main
from engineworks.runtime.manifest import Batch

LAYERS = tuple("abcdefgh")
NOISE = dict(zip(LAYERS, (1.0, 8.0, 3.0, 3.0, 0.5, 4.0, 0.25, 0.25), strict=True))
ORDER = ("b", "f", "c", "d", "a", "e", "g", "h")  # of equal ones that which comes first
PICTURES = 10_000
NOW = signal.SIGINT


@dataclass(frozen=True)
class Scripted(Judge):
    """A judge that knows what each network loses: its "graph" is the number of layers left out."""

    lost: Mapping[int, int] = field(default_factory=dict)
    press: Mapping[int, int] = field(default_factory=dict)

    def drop(self, graph: Any, at: Any = lambda share: None, optimise: Any = "float") -> Drop:
        for _ in range(self.press.get(graph, 0)):
            os.kill(os.getpid(), NOW)
        at(0.5)
        return Drop(self.lost[graph], 0, PICTURES, labelled=self.truth is not None)


def judge(lost: Any, *, labelled: bool = True, press: Any = None) -> Scripted:
    known = np.zeros(PICTURES, np.int64)
    truth = known if labelled else None
    lost = lost if isinstance(lost, Mapping) else dict(enumerate(lost))
    return Scripted(lambda: iter(()), known, truth, "logits", "made up", "f" * 64, lost, press or {})


@dataclass
class Seen:
    """A shop's customers: what was built, said and shown."""

    built: list[tuple[str, ...]] = field(default_factory=list)
    methods: list[str | None] = field(default_factory=list)
    said: list[tuple[str, bool]] = field(default_factory=list)
    shown: list[tuple[str, float]] = field(default_factory=list)
    noises: int = 0

    def shop(self, typed: Any = None) -> Shop:
        def build(left: tuple[str, ...], method: str | None, on_part: OnPart) -> Quantised:
            on_part("layers", 1, 2)
            self.built.append(left)
            self.methods.append(method)
            model: Any = len(left)
            return Quantised(model, "mse", {}, (), (), "", left, 0.0, ())

        def noise(method: str, on_part: OnPart) -> Mapping[str, float]:
            assert method == "mse"
            on_part("sensitivity", 1, 8)
            self.noises += 1
            return NOISE

        return Shop(
            len(LAYERS), build, noise, typed, "fp16",
            lambda step, text, warning: self.said.append((text, warning)),
            lambda phase, share: self.shown.append((phase, share or 0.0)),
        )  # fmt: skip


LOSING = (900, 500, 300, 20, 10, 5, 0, 0)  # by the number of layers left out; 0.5 points are 50 pictures


def test_the_fewest_layers_are_left_out_in_the_order_of_what_the_answers_feel() -> None:
    seen = Seen()
    found = keep_within(judge(LOSING), 0.5, seen.shop())
    assert found.made.left_out == ORDER[:3]
    assert seen.built == [(), ORDER[:4], ORDER[:2], ORDER[:3]]
    assert seen.methods == [None, "mse", "mse", "mse"], "the ranges are chosen once"
    assert seen.noises == 1
    assert [trial["left_out"] for trial in found.record["trials"]] == [0, 4, 2, 3]
    assert (found.record["left_out"], found.record["layers"], found.record["judged_by"]) == (3, 8, "labels")


def test_what_needs_no_budget_takes_one_evaluation_and_no_scan() -> None:
    seen = Seen()
    found = keep_within(judge([3] * 8), 0.5, seen.shop())
    assert (found.made.left_out, seen.built, seen.noises) == ((), [()], 0)
    assert found.reasons == {}


def test_the_evaluations_are_said_beforehand_and_each_is_told() -> None:
    seen = Seen()
    keep_within(judge(LOSING), 0.5, seen.shop())
    texts = [text for text, _ in seen.said]
    assert texts[0] == (
        "at most 4 evaluations on 10000 labelled pictures, then one of the graph for CPUs; Ctrl-C keeps the best so far"
    )
    assert len(texts) == 5 and most_evaluations(8) == 4
    assert texts[1] == "0 of 8 layers left out: top-1 falls by 9.00 points (95 %: 8.45 to 9.58), above 0.5"
    assert texts[4] == "3 of 8 layers left out: top-1 falls by 0.20 points (95 %: 0.13 to 0.31), within 0.5"
    phases = [phase for phase, _ in seen.shown]
    assert "budget: evaluation 1 of at most 4, 0 layers left out:" in phases, "no time is known yet"
    assert any(phase.startswith("budget: evaluation 2 of at most 4, 4 layers left out, 0 s left") for phase in phases)
    assert all(0 <= share <= 1 for _, share in seen.shown)


def test_each_layer_left_out_has_its_reason() -> None:
    found = keep_within(judge(LOSING), 0.5, Seen().shop())
    assert list(found.reasons) == list(ORDER[:3])
    assert found.reasons["f"] == (
        "number 2 of 8 by what the answers feel of each layer alone, 20.0% of the noise; with 2 left out up to 3.35 "
        "points could be lost, 0.5 are allowed"
    )
    assert found.notes == (
        "accuracy budget of 0.5 points: top-1 falls by 0.20 points (95 %: 0.13 to 0.31) on 10000 labelled pictures; "
        "3 of 8 layers left out of int8",
    )


def test_without_labels_the_words_say_what_was_counted() -> None:
    seen = Seen()
    found = keep_within(judge(LOSING, labelled=False), 0.5, seen.shop())
    assert seen.said[0][0].startswith("at most 4 evaluations on 10000 held-out calibration images, by other answers")
    assert drop_words(Drop(20, 0, PICTURES, labelled=False)) == "0.20 % are answered otherwise (95 %: 0.13 to 0.31)"
    assert found.record["judged_by"] == "agreement" and found.record["float32_right"] is None


def test_a_budget_that_cannot_be_met_is_refused_with_the_figures() -> None:
    lost = (900, 500, 300, 400, 300, 200, 120, 150)
    with pytest.raises(ExportError) as caught:
        keep_within(judge(lost), 0.5, Seen().shop())
    assert str(caught.value) == (
        "--max-drop 0.5 cannot be met in int8: with no layer left out top-1 falls by 9.00 points (95 %: 8.45 to 9.58); "
        "the least was reached with 6 of 8 layers in fp16: top-1 falls by 1.20 points (95 %: 1.00 to 1.43). Try "
        "--quality high, more --calib-images, more pictures, a larger --max-drop, or --fp16."
    )


def halved(model: Any) -> Any:
    return f"fp16 {model}"


def cast(lost: Mapping[int, int]) -> Scripted:
    return judge({**dict(enumerate(LOSING)), **{f"fp16 {count}": number for count, number in lost.items()}})


def test_the_set_that_was_found_is_judged_once_more_as_it_ships() -> None:
    seen = Seen()
    found = keep_within(cast({3: 25}), 0.5, seen.shop(halved))
    assert found.record["shipped"]["lost"] == 25 and found.record["trials"][-1]["lost"] == 20
    assert found.notes[0].startswith("accuracy budget of 0.5 points: top-1 falls by 0.25 points")
    assert "then of the set found in fp16 and the graph for CPUs" in seen.said[0][0]
    assert seen.said[-1][0].startswith("3 of 8 layers left out, in fp16: top-1 falls by 0.25 points")


def test_where_the_cast_takes_it_above_the_budget_the_set_before_it_serves_or_none() -> None:
    found = keep_within(cast({3: 60, 4: 11}), 0.5, Seen().shop(halved))
    assert found.made.left_out == ORDER[:4] and found.record["left_out"] == 4
    assert "with 3 left out up to 0.77 points could be lost" in found.reasons["b"]
    with pytest.raises(
        ExportError, match=r"--max-drop 0.5 is met around float32 alone: 4 of 8 .* Try --int8-rest fp32"
    ):
        keep_within(cast({3: 60, 4: 70}), 0.5, Seen().shop(halved))


# --- Ctrl-C


def test_one_ctrl_c_keeps_the_best_set_so_far_and_says_so() -> None:
    before, seen = signal.getsignal(signal.SIGINT), Seen()
    found = keep_within(judge(LOSING, press={2: 1}), 0.5, seen.shop())
    assert found.made.left_out == ORDER[:4]
    assert found.record["stopped"] and found.record["left_out"] == 4
    assert ("stopped after 2 of at most 4 evaluations", True) in seen.said
    assert found.notes[1].startswith(STOPPED)
    assert "with 0 left out up to 9.58 points" in found.reasons["b"], "fewer were tried, and what that cost is told"
    assert signal.getsignal(signal.SIGINT) is before


def test_ctrl_c_before_any_set_met_the_budget_is_an_interrupt() -> None:
    for press in ({0: 1}, {4: 1}):
        seen = Seen()
        with pytest.raises(KeyboardInterrupt):
            keep_within(judge((900, 500, 300, 200, 10, 5, 0, 0), press=press), 0.5, seen.shop())
        assert ("no set of layers had met --max-drop 0.5 yet", True) in seen.said


def test_ctrl_c_when_the_search_is_over_loses_nothing_and_says_so() -> None:
    scripted = judge({**dict(enumerate(LOSING)), "fp16 3": 20, "twin": 20}, press={"fp16 3": 1, "twin": 1})
    seen, twin = Seen(), "twin"
    found = keep_within(scripted, 0.5, seen.shop(halved))
    assert found.made.left_out == ORDER[:3] and not found.record["stopped"]
    assert seen.said[-1] == ("the search was over already; Ctrl-C once more ends the export", True)
    assert judge_twin(found, scripted, twin, seen.shop().say).record["cpu"]["kept"]  # type: ignore[arg-type]
    assert sum("over already" in text for text, _ in seen.said) == 2


def test_a_second_ctrl_c_ends_at_once() -> None:
    before, seen = signal.getsignal(signal.SIGINT), Seen()
    with pytest.raises(KeyboardInterrupt):
        keep_within(judge(LOSING, press={2: 2}), 0.5, seen.shop())
    assert not any("stopped" in text for text, _ in seen.said)
    assert signal.getsignal(signal.SIGINT) is before


# --- the graph for CPUs


@pytest.mark.parametrize(("lost", "kept"), [(10, True), (500, False)])
def test_the_graph_for_cpus_is_held_to_the_same_budget(lost: int, kept: bool) -> None:
    twin: Any = "twin"
    scripted = judge({**dict(enumerate(LOSING)), "twin": lost})
    seen = Seen()
    within = keep_within(scripted, 0.5, seen.shop())
    found = judge_twin(within, scripted, twin, seen.shop().say)
    assert found.record["cpu"]["kept"] is kept
    assert seen.said[-1][0].startswith("the int8 graph for CPUs: top-1 falls by")
    assert seen.said[-1][1] is not kept, "a warning where it is left away"
    assert any(note.startswith("no int8 graph for CPUs: top-1 falls by 5.00 points") for note in found.notes) != kept


# --- whole exports: KL ranges clip what LeNet-5's distances need, and cost it 22 points


IMAGES, LABELS = digits()
HELD_OUT = Path(__file__).parent / "data" / "held_out_digits.npz"
SPOILT = Recipe(
    "lenet5", "int8", batch=Batch(1, 4, 8), engine="none", calib_data="-", calib_images=40, calib_method="entropy",
    quality="fast", max_drop=1.0,
)  # fmt: skip


@pytest.fixture(scope="module", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ENGINEWORKS_CACHE", str(tmp_path_factory.mktemp("cache")))
        patch.setenv("SOURCE_DATE_EPOCH", "1700000000")
        yield


def save(root: Path, images: Any, labels: Any) -> Path:
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(root / str(label) / f"{number}.png")
    return root


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """Calibrated on fifty digits, judged on four hundred that nobody has seen."""
    root = tmp_path_factory.mktemp("digits")
    with np.load(HELD_OUT, allow_pickle=False) as data:
        labelled = save(root / "labelled", data["images"][1000:1400], data["labels"][1000:1400])
    return replace(SPOILT, calib_data=str(save(root / "c", IMAGES[:50], LABELS[:50])), data=str(labelled))


@pytest.fixture(scope="module")
def made(recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export_model(recipe, tmp_path_factory.mktemp("made") / "b", use_cache=False)


def test_a_network_that_int8_harms_keeps_the_layer_that_it_is_harmed_by(made: Bundle) -> None:
    content = json.loads(made.read("calibration.json"))
    budget = content["budget"]
    assert [trial["left_out"] for trial in budget["trials"]] == [0, 1]
    assert budget["trials"][0]["points"] > 10
    assert budget["trials"][1]["high"] <= 1.0
    assert (budget["pictures"], budget["allowed_points"], budget["stopped"]) == (400, 1.0, False)
    (left,) = content["left"]
    assert made.manifest.precision.realised == {"float16": 2, "int8": 2}  # one was too small for int8 already
    assert made.manifest.recipe["max_drop"] == 1.0
    assert any(note.startswith("accuracy budget of 1 points: top-1 falls by") for note in made.manifest.notes)
    assert {d["rule"] for d in content["decisions"] if d["node"] == left and d["role"] == "input"} == {"left out"}


def test_the_drop_in_the_record_is_the_one_that_the_bundle_shows(made: Bundle, recipe: Recipe, tmp_path: Path) -> None:
    """Counted again by the runtime, picture by picture, on the graph for GPUs."""
    from engineworks import runtime
    from engineworks.runtime.dataset import open_dataset
    from engineworks.runtime.evaluate import evaluate, paired

    plain = replace(
        recipe, precision="fp32", calib_data=None, calib_images=128, calib_method="auto", quality="normal", data=None,
        max_drop=None,
    )  # fmt: skip
    original = export_model(plain, tmp_path / "f", use_cache=False)
    graph = {name: value for name, value in made.manifest.graph.items() if name != "cpu"}
    judged = Bundle(made.path, replace(made.manifest, graph=graph))
    assert recipe.data is not None
    data = open_dataset(recipe.data, made.manifest.labels, 10)
    with runtime.load(original.path, device="cpu") as first:
        before = evaluate(first, data)
    session = runtime.backend.open_bundle_session(judged, device="cpu")
    right = []
    for file, label in data.pictures:
        x = runtime.preprocess(file, runtime.Preprocessing.from_json(made.manifest.preprocessing or {}))
        right.append(int(session.run({"input": x}, ["output"])[0][0].argmin()) == label)
    trial = json.loads(made.read("calibration.json"))["budget"]["shipped"]
    assert trial["lost"] == int((before.right & ~np.array(right)).sum())
    assert trial["gained"] == int((~before.right & np.array(right)).sum())
    assert paired(before, before)["high_points"] > 0


def test_inspect_model_tells_the_budget_and_each_reason(made: Bundle, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect_main([str(made.path), "--why"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert any(
        line.startswith("accuracy budget: 1 points at most, judged on 400 pictures (400 labelled") for line in lines
    )
    assert sum("layers left out: " in line for line in lines) == 2
    left = [line for line in lines if "[left out]" in line]
    assert left and all("number 1 of 3 by what the answers feel" in line for line in left)


@pytest.mark.slow
def test_the_same_budget_is_a_cache_hit_and_another_or_other_pictures_are_none(recipe: Recipe, tmp_path: Path) -> None:
    steps: list[str] = []

    def hits(changed: Recipe, name: str) -> int:
        steps.clear()
        export_model(changed, tmp_path / name, say=lambda step, text, warning: steps.append(step))
        return steps.count("cache")

    assert hits(recipe, "1") == 0
    assert hits(recipe, "2") == 1
    assert hits(replace(recipe, max_drop=1.5), "3") == 0
    assert recipe.data is not None
    (extra := Path(recipe.data) / "0" / "extra.png").write_bytes(next(Path(recipe.data).rglob("*.png")).read_bytes())
    assert hits(recipe, "4") == 0
    extra.unlink()
    assert hits(recipe, "5") == 1


@pytest.mark.slow
def test_a_search_that_was_cut_off_is_not_kept(recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = search

    def cut(*arguments: Any, **options: Any) -> Search:
        return replace(real(*arguments, **options), stopped=True)

    monkeypatch.setattr("engineworks.export.budget.search", cut)
    steps: list[str] = []
    for name in ("1", "2"):
        bundle = export_model(
            replace(recipe, max_drop=2.0), tmp_path / name, say=lambda step, text, warning: steps.append(step)
        )
    assert "cache" not in steps
    assert any(note.startswith(STOPPED) for note in bundle.manifest.notes)


def test_ctrl_c_too_early_leaves_nothing_behind(recipe: Recipe, tmp_path: Path) -> None:
    def press(step: str, text: str, warning: bool) -> None:
        if "0 of 3 layers left out" in text:
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        export_model(recipe, tmp_path / "out", use_cache=False, say=press)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--int8", "--calib-data", "x", "--data", "y"], "--data is what --max-drop is judged on; pass both"),
        (["--fp16", "--max-drop", "1"], "--max-drop is for --int8 alone"),
        (["--int8", "--calib-data", "x", "--max-drop", "1", "--fp16-share", "5%"], "contradict each other"),
        (["--int8", "--calib-data", "x", "--max-drop", "1", "--fp16-share", "1%"], "contradict each other"),
        (["--int8", "--calib-data", "x", "--max-drop", "0"], "points above 0"),
        (["--int8", "--calib-data", "x", "--max-drop", "lots"], "--max-drop"),
        (["--int8", "--calib-data", "x", "--max-drop", "1", "--data", ""], "--data is empty"),
    ],
)
def test_contradictory_flags_are_wrong_usage(flags: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert export_main(["lenet5", *flags]) == 2
    assert said in " ".join(capsys.readouterr().err.split())


def test_too_few_images_without_labels_are_refused_with_the_number(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"10 held-out calibration images cannot show.*Give --calib-images 1524 "):
        export_model(replace(recipe, data=None), tmp_path / "out", use_cache=False)
    assert not (tmp_path / "out").exists()
