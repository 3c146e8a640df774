"""evaluate-model counts right answers as a person would, and says how sure that is."""

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engineworks.runtime import BackendError, BundleError, InputError, load
from engineworks.runtime.dataset import Dataset
from engineworks.runtime.evaluate import Evaluation, evaluate, main, original, paired, summary, thinned

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255), "dark": (0, 0, 0)}
LENET = Path(__file__).parent / "data" / "lenet5-fp16"


def reference(rows: int = 4) -> bytes:
    """What four_classes.onnx answers to some rows, as a bundle records it."""
    images = np.random.default_rng(0).random((rows, 3, 8, 8), np.float32)
    means = images.mean(axis=(2, 3))
    stream = io.BytesIO()
    scores = np.concatenate([means, 1 - means.sum(axis=1, keepdims=True)], axis=1)
    arrays: dict[str, Any] = {"input:image": images, "output:scores": scores}
    np.savez(stream, **arrays)
    return stream.getvalue()


@pytest.fixture
def whole(make_bundle: Make, contents: dict[str, bytes]) -> Path:
    return make_bundle(files=contents | {"reference.npz": reference()})


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Three pictures of each colour; one red is green in truth, and one dark is blue."""
    root = tmp_path / "data"
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for number in range(3):
            wrong = {"red": "green", "dark": "blue"}.get(name) if number == 1 else None
            Image.new("RGB", (12, 10), COLOURS[wrong] if wrong else colour).save(root / name / f"{number}.png")
    return root


def told(capsys: Capture, *arguments: str, status: int = 0) -> Any:
    assert main(["--device", "cpu", "--json", *arguments]) == status
    return json.loads(capsys.readouterr().out)


def test_right_answers_are_counted_with_an_interval(whole: Path, data: Path, capsys: Capture) -> None:
    (report,) = told(capsys, str(whole), "--data", str(data))["bundles"]
    assert (report["top1"]["right"], report["top1"]["of"]) == (10, 12)
    assert report["top1"]["share"] == pytest.approx(10 / 12)
    # Wilson's formula for 10 of 12, worked by hand
    assert (report["top1"]["low"], report["top1"]["high"]) == pytest.approx((0.5520, 0.9530), abs=5e-4)
    assert report["top5"]["right"] == 12
    assert report["data"] == {
        "path": str(data),
        "pictures": 12,
        "classes": 4,
        "mapping": "folders are named by labels",
        "passed_over": 0,
    }


def test_the_worst_classes_come_first_with_what_they_are_taken_for(whole: Path, data: Path, capsys: Capture) -> None:
    (report,) = told(capsys, str(whole), "--data", str(data), "--worst", "9")["bundles"]
    assert [(row["class"], row["right"], row["of"], row["taken_for"], row["times"]) for row in report["worst"]] == [
        ("red", 2, 3, "green", 1),
        ("dark", 2, 3, "blue", 1),
    ]


def test_the_recorded_original_is_run_again(whole: Path, data: Path, capsys: Capture) -> None:
    (report,) = told(capsys, str(whole), "--data", str(data))["bundles"]
    assert report["original"]["rows"] == 4
    assert report["original"]["top1"] == 1.0
    # float32: sums of 64 values in [0, 1], each step to 2⁻²⁴ of its size
    assert report["original"]["sqnr_db"] is None or report["original"]["sqnr_db"] > 100


@pytest.mark.parametrize("content", [b"PK" + bytes(100), b"", reference()[:-40], b"\x93NUMPY"])
def test_a_reference_without_answers_is_one_line(
    make_bundle: Make, contents: dict[str, bytes], data: Path, capsys: Capture, content: bytes
) -> None:
    bundle = make_bundle(files=contents | {"reference.npz": content})
    assert main(["--device", "cpu", "--data", str(data), str(bundle)]) == 1
    err = capsys.readouterr().err
    assert err.startswith("evaluate-model: bundle four-fp16: reference.npz ")
    assert err.count("\n") == 1


def test_recorded_arrays_of_other_names_are_refused(bundle: Path) -> None:
    stream = io.BytesIO()
    arrays: dict[str, Any] = {"input:other": np.zeros(3)}
    np.savez(stream, **arrays)
    with load(bundle, device="cpu") as session, pytest.raises(BundleError, match="holds no recorded answers"):
        original(session, stream.getvalue())


def test_ten_crops_average_probabilities(whole: Path, make_bundle: Make, data: Path, capsys: Capture) -> None:
    (report,) = told(capsys, str(whole), "--data", str(data), "--ten-crop")["bundles"]
    assert (report["crops"], report["top1"]["right"]) == (10, 10)


def test_ten_crops_see_what_the_centre_does_not(make_bundle: Make, manifest: Any, tmp_path: Path) -> None:
    recipe = manifest.preprocessing | {"resize": None, "crop": [8, 8]}
    pixels = np.zeros((8, 40, 3), np.uint8)
    pixels[:, :, 2] = 255  # blue, and red in the middle
    pixels[:, 16:24] = (255, 0, 0)
    Image.fromarray(pixels).save(tmp_path / "x.png")
    data = Dataset(((tmp_path / "x.png", 0),), "", 0)
    with load(make_bundle(preprocessing=recipe), device="cpu") as session:
        assert evaluate(session, data).ranked[0, 0] == 0
        assert evaluate(session, data, ten_crop=True).ranked[0, 0] == 2


def test_ten_crops_of_a_recipe_without_a_crop_are_refused(
    make_bundle: Make, manifest: Any, data: Path, capsys: Capture
) -> None:
    bundle = make_bundle(preprocessing=manifest.preprocessing | {"resize": [8, 8], "crop": None})
    assert main(["--device", "cpu", "--data", str(data), "--ten-crop", str(bundle)]) == 1
    assert "its preprocessing has no crop. Leave --ten-crop out." in capsys.readouterr().err


def test_unreadable_pictures_are_left_out_named_and_status_1(whole: Path, data: Path, capsys: Capture) -> None:
    (data / "red" / "0.png").write_bytes(b"no picture")
    (data / "dark" / "0.png").write_bytes((data / "dark" / "2.png").read_bytes()[:30])
    (report,) = told(capsys, str(whole), "--data", str(data), status=1)["bundles"]
    assert (report["top1"]["right"], report["top1"]["of"]) == (8, 10)
    assert len(report["unreadable"]) == 2
    assert main(["--device", "cpu", "--data", str(data), str(whole)]) == 1
    shown = capsys.readouterr()
    assert "2 pictures could not be read and are left out." in shown.err
    assert shown.out.count("\n  unreadable ") == 2


def test_no_readable_picture_at_all_is_one_line(whole: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "l.txt").write_text("absent.png 0\n", "utf-8")
    assert main(["--device", "cpu", "--data", str(tmp_path / "l.txt"), str(whole)]) == 1
    assert "none of 1 pictures could be read; the first: " in capsys.readouterr().err


def test_a_list_and_a_limit(whole: Path, data: Path, capsys: Capture) -> None:
    lines = [f"{file.relative_to(data)}\t{file.parent.name}" for file in sorted(data.rglob("*.png"))]
    (data / "l.txt").write_text("\n".join(lines), "utf-8")
    (report,) = told(capsys, str(whole), "--data", str(data / "l.txt"), "--limit", "4")["bundles"]
    assert (report["top1"]["of"], report["data"]["classes"]) == (4, 4)


def test_a_limit_takes_pictures_evenly() -> None:
    data = Dataset(tuple((Path(str(number)), number) for number in range(10)), "x", 0)
    assert [index for _, index in thinned(data, 4).pictures] == [0, 2, 5, 7]
    assert thinned(data, None) is thinned(data, 10) is data


def test_answers_that_are_not_finite_are_an_error_that_names_the_picture(
    bundle: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with load(bundle, device="cpu") as session:
        monkeypatch.setattr(session, "infer_batch", lambda rows: (np.full(4, np.nan) for _ in rows))
        files = Dataset(((data / "red" / "0.png", 0),), "", 0)
        with pytest.raises(BackendError, match=r"answered NaN or infinity to .*red/0\.png\.$"):
            evaluate(session, files)


def test_among_distances_the_lowest_is_first(make_bundle: Make, data: Path) -> None:
    files = Dataset(((data / "red" / "0.png", 0),), "", 0)
    with load(make_bundle(scores="distances"), device="cpu") as session:
        assert evaluate(session, files).ranked[0].tolist() == [1, 2, 3, 0]


# --- two bundles


def evaluation(ranked: list[int], truth: list[int], places: list[int] | None = None) -> Evaluation:
    return Evaluation(np.array(places or range(len(truth))), np.array(truth), np.array(ranked)[:, None], (), 1.0)


def test_a_paired_test_counts_what_only_one_got_right() -> None:
    found = paired(evaluation([0, 0, 0, 1], [0, 0, 1, 0]), evaluation([0, 1, 1, 1], [0, 0, 1, 0]))
    low, high = found.pop("low_points"), found.pop("high_points")
    assert -100 < low < 0 < high < 100 and low == pytest.approx(-high)
    assert found == {
        "pictures": 4,
        "both_right": 1,
        "only_first": 1,
        "only_second": 1,
        "both_wrong": 1,
        "same_answer": 0.5,
        "difference_points": 0.0,
        "p": 1.0,
    }


def test_only_pictures_that_both_could_read_are_paired() -> None:
    found = paired(evaluation([0, 0, 0], [0, 0, 0], [0, 2, 4]), evaluation([1, 0], [0, 0], [2, 4]))
    assert (found["pictures"], found["only_first"], found["both_right"]) == (2, 1, 1)
    with pytest.raises(InputError, match="no picture in common"):
        paired(evaluation([0], [0], [1]), evaluation([0], [0], [2]))


def test_two_bundles_stand_side_by_side(
    whole: Path, make_bundle: Make, contents: dict[str, bytes], data: Path, capsys: Capture
) -> None:
    other = make_bundle("other", files=contents | {"reference.npz": reference()}, scores="distances")
    content = told(capsys, str(whole), str(other), "--data", str(data))
    assert [report["bundle"] for report in content["bundles"]] == ["four-fp16", "four-fp16"]
    assert (content["paired"]["only_first"], content["paired"]["only_second"]) == (10, 1)
    assert content["paired"]["p"] == pytest.approx(2 * 12 / 2**11)
    assert main(["--device", "cpu", "--data", str(data), str(whole), str(other)]) == 0
    out = capsys.readouterr().out
    assert "four-fp16 against four-fp16, 12 pictures" in out
    assert "-75.00 points (95 %: -93.08 to -22.80), p = 0.0117 (McNemar, exact): a difference" in out


def test_three_bundles_are_wrong_usage(whole: Path, data: Path) -> None:
    assert main([str(whole)] * 3 + ["--data", str(data)]) == 2


# --- the words


def test_the_figures_are_told_in_words(whole: Path, data: Path, capsys: Capture) -> None:
    assert main(["--device", "cpu", "--data", str(data), str(whole)]) == 0
    told = capsys.readouterr()
    assert told.err == ""  # no terminal, no progress
    lines = told.out.splitlines()
    assert lines[0] == "four-fp16 (four, fp16) on onnxruntime-cpu (asked for)"
    assert f"  data       {data}: 12 pictures of 4 classes; folders are named by labels" in lines
    assert "  crops      one, from the centre" in lines
    assert "  top-1      83.33% (95 %: 55.20% to 95.30%), 10 of 12" in lines
    assert "  worst      red: 2 of 3 right; most often taken for green (1)" in lines
    assert any(line.startswith("  original   4 recorded rows: ") for line in lines)


def test_a_perfect_evaluation_has_no_worst_class() -> None:
    assert summary(evaluation([0, 1], [0, 1]), (), 5)["worst"] == []


def test_a_bundle_that_is_no_classifier_says_so(two_inputs: Path, data: Path, capsys: Capture) -> None:
    assert main(["--device", "cpu", "--data", str(data), str(two_inputs)]) == 1
    assert "says nothing of preprocessing" in capsys.readouterr().err


@pytest.mark.slow
def test_lenet_reads_held_out_digits_as_well_as_it_says(tmp_path: Path, capsys: Capture) -> None:
    with np.load(LENET.parent / "held_out_digits.npz", allow_pickle=False) as digits:
        for number, (image, label) in enumerate(zip(digits["images"], digits["labels"], strict=True)):
            (tmp_path / str(label)).mkdir(exist_ok=True)
            Image.fromarray(image).save(tmp_path / str(label) / f"{number:04}.png")
    (report,) = told(capsys, str(LENET), "--data", str(tmp_path))["bundles"]
    assert (report["top1"]["right"], report["top1"]["of"]) == (1970, 2000)  # what the README tells
    assert report["original"]["sqnr_db"] > 65.9  # what the bundle's own comparison requires


def test_a_recorded_original_of_the_real_bundle_agrees() -> None:
    with load(LENET, device="cpu", threads=1) as session:
        found = original(session, (LENET / "reference.npz").read_bytes())
    assert found["sqnr_db"] > 65.9  # what the bundle's own comparison requires
    assert found["rows"] == 8


def test_evaluations_are_values() -> None:
    one = evaluation([0, 1], [0, 0])
    assert replace(one, seconds=2.0).right.tolist() == [True, False]
