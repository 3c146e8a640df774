"""Class folders and list files: which class a picture is, and how that was told."""

from pathlib import Path

import pytest

from engineworks.runtime import InputError
from engineworks.runtime.dataset import open_dataset

LABELS = ("red panda", "cat", "dog")


def tree(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")
    return root


def found(path: Path, labels: tuple[str, ...] = LABELS, classes: int = 3) -> list[tuple[str, int]]:
    root = path if path.is_dir() else path.parent
    return [(str(file.relative_to(root)), index) for file, index in open_dataset(path, labels, classes).pictures]


def test_folders_named_by_labels_are_those_classes_however_they_are_sorted(tmp_path: Path) -> None:
    tree(tmp_path, "Red_Panda/a.png", "cat/deep/b.JPG", "cat/c.jpeg")
    assert found(tmp_path) == [("Red_Panda/a.png", 0), ("cat/c.jpeg", 1), ("cat/deep/b.JPG", 1)]
    assert open_dataset(tmp_path, LABELS, 3).mapping == "folders are named by labels"


def test_folders_named_by_numbers_are_those_indices(tmp_path: Path) -> None:
    tree(tmp_path, "2/a.png", "10/b.png")
    assert found(tmp_path, (), 11) == [("10/b.png", 10), ("2/a.png", 2)]
    assert open_dataset(tmp_path, (), 11).mapping == "folders are named by indices"


def test_folders_of_other_names_count_in_sorted_order(tmp_path: Path) -> None:
    tree(tmp_path, "n02/b.png", "n01/a.png", "n03/c.png")
    assert found(tmp_path) == [("n01/a.png", 0), ("n02/b.png", 1), ("n03/c.png", 2)]
    assert "sorted order" in open_dataset(tmp_path, LABELS, 3).mapping


def test_other_files_are_counted_and_hidden_ones_left_alone(tmp_path: Path) -> None:
    tree(tmp_path, "cat/a.png", "cat/notes.txt", "cat/.DS_Store", ".git/x.png", "readme.png")
    data = open_dataset(tmp_path, LABELS, 3)
    assert (len(data.pictures), data.passed_over) == (1, 1)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (("a/x.png", "b/x.png"), "2 folders, such as 'a', are no labels, and the network has 3 classes"),
        (("cat/x.png", "cow/x.png"), "1 of 2 folders are named by labels, but 'cow' is none"),
        (("cat/x.txt",), "no picture in the 1 folders"),
        (("x.png",), "expected a folder for each class"),
        (("3/x.png",), "1 folders, such as '3', are no labels"),
    ],
)
def test_folders_that_tell_nothing_are_refused(tmp_path: Path, names: tuple[str, ...], told: str) -> None:
    with pytest.raises(InputError, match=told):
        open_dataset(tree(tmp_path, *names), LABELS, 3)


def test_a_list_takes_tabs_commas_and_blanks_labels_and_numbers(tmp_path: Path) -> None:
    file = tmp_path / "val.txt"
    file.write_text("a b.png 2\n\nsub/c.png\tred panda\nd, e.png,Cat\n", "utf-8")
    assert found(file) == [("a b.png", 2), ("sub/c.png", 0), ("d, e.png", 1)]
    assert open_dataset(file, LABELS, 3).mapping == "classes as val.txt tells them"


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("a.png 0\nb.png\n", r"line 2: expected PICTURE CLASS, got 'b\.png'"),
        ("a.png 3", "line 1: expected a label or an index below 3, got '3'"),
        ("a.png -1", "got '-1'"),
        ("a.png cow", "got 'cow'"),
        ("\n\n", "is empty"),
    ],
)
def test_a_line_that_tells_nothing_is_named(tmp_path: Path, text: str, told: str) -> None:
    (tmp_path / "l.txt").write_text(text, "utf-8")
    with pytest.raises(InputError, match=told):
        open_dataset(tmp_path / "l.txt", LABELS, 3)


def test_what_is_not_there_or_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="neither a folder nor a file"):
        open_dataset(tmp_path / "absent", LABELS, 3)
    (tmp_path / "b").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="is no text"):
        open_dataset(tmp_path / "b", LABELS, 3)
