"""What a budget is judged on: pairs are counted right, and what could prove nothing is refused before any search."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

from engineworks.calibration.budget import Drop
from engineworks.calibration.source import Images, Item
from engineworks.export.judge import class_count, data_digest, labelled_pictures, open_judge
from engineworks.runtime.errors import ExportError
from engineworks.runtime.preprocessing import Preprocessing

RECIPE = Preprocessing("RGB", 4, "nearest", (4, 4), 0, (0.0,) * 3, (1.0,) * 3)
COLOURS = ("red", "green", "blue")
PLAIN = np.eye(3)
ALLOWED = 20.0  # 16 pictures can show it


def network(batch: int | str = "n", weights: Any = PLAIN, outputs: int = 3) -> Any:
    """The brightest colour wins, after a mixing of the three by ``weights``."""
    nodes = [
        helper.make_node("GlobalAveragePool", ["x"], ["p"], name="p"),
        helper.make_node("Flatten", ["p"], ["f"], name="f"),
        helper.make_node("MatMul", ["f", "w"], ["y"], name="y"),
    ]
    stored = [numpy_helper.from_array(np.asarray(weights, np.float32)[:, :outputs], "w")]
    ends = [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, outputs])]
    start = [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, 4, 4])]
    graph = helper.make_graph(nodes, "g", start, ends, stored)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Thirty pictures, ten of each colour; the last of each folder is of the next colour: 27 are right."""
    root = tmp_path / "data"
    for number, colour in enumerate(COLOURS):
        (root / colour).mkdir(parents=True)
        for picture in range(10):
            pixels = np.zeros((4, 4, 3), np.uint8)
            pixels[..., (number + (picture == 9)) % 3] = 100 + picture
            Image.fromarray(pixels).save(root / colour / f"{picture}.png")
    return root


def pictures(data: Path, told: list[str] | None = None) -> Images:
    def skip(name: str, why: str) -> None:
        (told if told is not None else []).append(name)

    return labelled_pictures(str(data), "x", RECIPE, COLOURS, 3, skip)


def rows(values: Any) -> Images:
    """Images without a class, one colour each."""

    def item(number: int, value: Any) -> Item:
        row = np.zeros((1, 3, 4, 4), np.float32)
        row[0, :] = np.asarray(value, np.float32)[:, None, None]
        return Item(str(number), None, lambda: {"x": row}, row.tobytes)

    items = [item(number, value) for number, value in enumerate(values)]
    return Images("made up", len(items), lambda: items)


@pytest.mark.parametrize("batch", ["n", 7])
def test_lost_and_gained_pictures_are_counted_against_float32(data: Path, batch: Any) -> None:
    judge = open_judge(network(batch), pictures(data), ALLOWED, "logits", labelled=True)
    assert judge.truth is not None
    assert int((judge.exact == judge.truth).sum()) == 27
    assert judge.drop(network(batch)) == Drop(0, 0, 30)
    swapped = network(batch, np.eye(3)[[1, 0, 2]])  # red ↔ green: 9 + 9 lost; of 3 wrong ones red's last is gained
    assert judge.drop(swapped) == Drop(18, 1, 30)


def test_without_labels_other_answers_are_counted() -> None:
    images = rows([*[(1, 0, 0)] * 20, *[(0, 1, 0)] * 10])
    judge = open_judge(network(), images, ALLOWED, "logits", labelled=False)
    assert judge.truth is None
    assert judge.drop(network(weights=np.eye(3)[[1, 0, 2]])) == Drop(30, 0, 30, labelled=False)
    assert judge.drop(network(weights=np.diag([1, -1, 1]))) == Drop(10, 0, 30, labelled=False)


def test_the_lowest_wins_where_scores_are_distances() -> None:
    images = rows([*[(0, 1, 1)] * 20, *[(1, 0, 1)] * 10])
    judge = open_judge(network(), images, ALLOWED, "distances", labelled=False)
    assert judge.exact.tolist() == [0] * 20 + [1] * 10


def test_an_answer_that_is_not_finite_is_never_right(data: Path) -> None:
    judge = open_judge(network(), pictures(data), ALLOWED, "logits", labelled=True)
    broken = network(weights=np.full((3, 3), np.nan))
    assert judge.drop(broken) == Drop(27, 0, 30)


def test_progress_is_told_and_may_stop_the_pass(data: Path) -> None:
    judge = open_judge(network(), pictures(data), ALLOWED, "logits", labelled=True)
    told: list[float] = []
    judge.drop(network(), told.append)
    assert told == sorted(told) and told[-1] == 1.0

    def stop(share: float) -> None:
        raise StopIteration

    with pytest.raises((StopIteration, RuntimeError)):
        judge.drop(network(), stop)


def test_pictures_beyond_the_room_are_read_again_with_the_same_answers(
    data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("engineworks.export.judge._ROOM", 1000)
    (data / "red" / "broken.png").write_bytes(b"no picture")
    told: list[str] = []
    judge = open_judge(network(), pictures(data, told), ALLOWED, "logits", labelled=True)
    assert judge.drop(network(weights=np.eye(3)[[1, 0, 2]])) == Drop(18, 1, 30)
    assert told == ["broken.png"], "named once, whatever the passes"


def test_a_broken_picture_is_named_and_many_are_refused(data: Path) -> None:
    for number in range(3):
        (data / "red" / f"broken{number}.png").write_bytes(b"no picture")
    with pytest.raises(ExportError, match="2 of 33 cannot be used, at most 5 % may be"):
        open_judge(network(), pictures(data), ALLOWED, "logits", labelled=True)


def test_too_few_pictures_are_refused_with_the_number_it_takes(data: Path) -> None:
    with pytest.raises(
        ExportError, match=r"30 labelled pictures cannot show so small a drop.* 11\.35 points.*takes 73"
    ):
        open_judge(network(), pictures(data), 5.0, "logits", labelled=True)
    with pytest.raises(ExportError, match=r"2 held-out calibration images cannot.* Give --calib-images 292 "):
        open_judge(network(), rows([(1, 0, 0), (0, 1, 0)]), 5.0, "logits", labelled=False)


def test_classes_that_do_not_fit_the_network_are_refused(data: Path) -> None:
    """A budget on wrong labels would be met by any network: who guesses has nothing to lose."""
    wrong = pictures(data)
    items = [Item(i.name, ((i.label or 0) + 1) % 3, i.load, i.content) for i in wrong.items()]
    shuffled = Images(wrong.description, wrong.count, lambda: items)
    with pytest.raises(
        ExportError, match="float32 itself is right on 3 of 30 pictures, no better than guessing among 3"
    ):
        open_judge(network(), shuffled, ALLOWED, "logits", labelled=True)


def test_a_network_that_answers_everything_alike_proves_nothing() -> None:
    with pytest.raises(ExportError, match="answers all 30 pictures alike"):
        open_judge(network(), rows([(1, 0, 0)] * 30), ALLOWED, "logits", labelled=False)


def test_what_is_no_classifier_is_refused() -> None:
    assert class_count(network()) == 3
    with pytest.raises(ExportError, match="this network is no classifier"):
        class_count(network(outputs=1))
    free = network()
    free.graph.output[0].type.tensor_type.shape.dim[1].dim_param = "k"
    with pytest.raises(ExportError, match="this network is no classifier"):
        class_count(free)


def test_a_network_that_takes_no_pictures_and_data_that_is_not_there_are_refused(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="how pictures are prepared for this network is not known"):
        labelled_pictures(str(data), "x", None, COLOURS, 3, lambda name, why: None)
    with pytest.raises(ExportError, match=r"--data: .*neither a folder nor a file"):
        labelled_pictures(str(tmp_path / "gone"), "x", RECIPE, COLOURS, 3, lambda name, why: None)


def changes(data: Path) -> Iterator[str]:
    """Change one thing after another, each of which may change the answer."""
    picture = data / "red" / "0.png"
    picture.write_bytes((data / "red" / "1.png").read_bytes())
    yield "a picture's content"
    picture.rename(data / "green" / "moved.png")
    yield "a picture's class"
    (data / "blue").rename(data / "azure")
    yield "a class's name"
    (data / "green" / "2.png").unlink()
    yield "a picture that is gone"


def test_the_digest_changes_with_whatever_the_answer_may_depend_on(data: Path) -> None:
    seen = {data_digest(str(data))}
    assert data_digest(str(data)) in seen
    for what in changes(data):
        digest = data_digest(str(data))
        assert digest not in seen, what
        seen.add(digest)


def test_the_digest_reaches_into_class_folders_that_are_links(data: Path, tmp_path: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    for colour in COLOURS:
        (linked / colour).symlink_to(data / colour)
    before = data_digest(str(linked))
    (data / "red" / "3.png").write_bytes(b"other")
    assert data_digest(str(linked)) != before


@pytest.mark.parametrize("sign", ["\t", ",", " "])
def test_the_digest_of_a_list_covers_the_pictures_that_it_names(data: Path, sign: str) -> None:
    listed = data / "some.txt"
    listed.write_text(f"red/3.png{sign}0\n\n{'x' * 5000} 1\nblue/4.png{sign}2\n")
    before = data_digest(str(listed))
    (data / "blue" / "4.png").write_bytes(b"other")
    after = data_digest(str(listed))
    assert after != before
    listed.write_text(listed.read_text().replace(f"{sign}2", f"{sign}1"))
    assert data_digest(str(listed)) not in {before, after}
    with pytest.raises(ExportError, match="there is no such folder or list"):
        data_digest(str(data / "gone.txt"))
