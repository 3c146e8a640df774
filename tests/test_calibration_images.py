"""Folders and lists of pictures: what is taken, in which order, with which label, and what is refused or left out."""

import hashlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from engineworks.calibration.images import class_indexes, open_images
from engineworks.calibration.source import Images, choose
from engineworks.runtime import InputError, Preprocessing, Tensor, preprocess

INPUTS = (Tensor("image", "float32", ("batch", 3, 8, 8)),)
RECIPE = Preprocessing("RGB", 8, "bilinear", (8, 8), 0, (0.5,) * 3, (0.25,) * 3)
Skipped = list[tuple[str, str]]


def picture(seed: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 10, 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def write(file: Path, image: Image.Image, **options: Any) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    image.save(file, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty pictures in a folder without classes."""
    for number in range(20):
        write(tmp_path / "pictures" / f"{number:02}.png", picture(number))
    return tmp_path / "pictures"


def opened(data: Path | str, **options: Any) -> Images:
    return open_images(data, INPUTS, RECIPE, **options)


def names(images: Images) -> list[str]:
    return [item.name for item in images.items()]


def rows(images: Images) -> npt.NDArray[np.generic]:
    return np.concatenate([row["image"] for row in images])


# --- what comes out


def test_pictures_come_prepared_one_by_one_in_sorted_order(folder: Path) -> None:
    images = opened(folder)
    assert (len(images), names(images)) == (20, [f"{number:02}.png" for number in range(20)])
    first = next(iter(images))
    assert (list(first), first["image"].shape, first["image"].dtype.name) == (["image"], (1, 3, 8, 8), "float32")
    assert np.array_equal(rows(images), preprocess(sorted(folder.iterdir()), RECIPE))


def test_a_second_pass_gives_the_same(folder: Path) -> None:
    images = opened(folder)
    assert np.array_equal(rows(images), rows(images))


def test_the_description_names_no_folder_of_this_machine(folder: Path) -> None:
    assert opened(folder, count=9).description == "9 of 20 pictures of the folder pictures"


def test_other_files_and_hidden_ones_are_passed_over(folder: Path) -> None:
    (folder / "readme.md").write_text("no picture")
    write(folder / ".hidden.png", picture(1))
    write(folder / ".cache" / "a.png", picture(1))
    write(folder / "LOUD.JPG", picture(1), format="JPEG")
    assert names(opened(folder)) == [*(f"{number:02}.png" for number in range(20)), "LOUD.JPG"]


def test_a_list_is_read_relative_to_itself_and_sorted(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    paths = [f"pictures/{number:02}.png" for number in range(9)]
    file.write_text("\n".join([str(folder / "19.png"), "", *reversed(paths)]) + "\n")
    images = opened(file)
    assert names(images) == [str(folder / "19.png"), *paths]
    assert images.description == "10 of 10 pictures of the list list.txt"
    assert np.array_equal(rows(images)[1:], preprocess([folder / f"{number:02}.png" for number in range(9)], RECIPE))


def deep_grey(seed: int) -> Image.Image:
    return Image.fromarray(np.asarray(picture(seed, "L")).astype(np.uint16) * 257)


KINDS: dict[str, Callable[[], Image.Image]] = {
    "grey.png": lambda: picture(1, "L"),
    "cmyk.jpg": lambda: picture(2, "CMYK"),
    "palette.png": lambda: picture(3, "P"),
    "palette.gif": lambda: picture(4, "P"),
    "alpha.png": lambda: picture(5, "RGBA"),
    "grey-alpha.png": lambda: picture(6, "LA"),
    "one-bit.png": lambda: picture(7, "1"),
    "deep.png": lambda: deep_grey(8),
    "deep.tif": lambda: deep_grey(9),
    "deep.pgm": lambda: deep_grey(10),
}


def test_what_users_have_is_read_without_a_warning(tmp_path: Path) -> None:
    for name, make in KINDS.items():
        write(tmp_path / name, make())
    exif = Image.Exif()
    exif[0x0112] = 6
    write(tmp_path / "turned.jpg", picture(11), exif=exif)
    images = opened(tmp_path)
    assert len(list(images)) == len(KINDS) + 1
    found = {item.name: item.load()["image"] for item in images.items()}
    assert np.array_equal(found["turned.jpg"], preprocess(tmp_path / "turned.jpg", RECIPE))
    assert np.array_equal(found["deep.png"], preprocess(picture(8, "L"), RECIPE)), "16 bits of grey as the 8 they were"


# --- which are chosen


def test_the_same_images_are_chosen_every_time_and_others_for_another_seed(folder: Path) -> None:
    assert names(opened(folder, count=8)) == names(opened(folder, count=8))
    assert names(opened(folder, count=8)) == sorted(names(opened(folder, count=8)))
    assert names(opened(folder, count=8)) != names(opened(folder, count=8, seed=1))


def test_the_choice_is_pinned() -> None:
    # the calibration of a bundle must be repeatable with a later version
    assert choose([f"{number}.jpg" for number in range(20)], [""] * 20, 5, 0) == [2, 3, 4, 15, 18]


def test_classes_are_drawn_from_evenly() -> None:
    classes = ["a"] * 100 + ["b"] * 3 + ["c"] * 50
    chosen = choose([str(number) for number in range(153)], classes, 23, 0)
    counts = {name: [classes[index] for index in chosen].count(name) for name in "abc"}
    assert counts == {"a": 10, "b": 3, "c": 10}


def test_fewer_images_than_classes_are_of_different_classes_and_not_the_first() -> None:
    classes = [f"{number // 10:03}" for number in range(1000)]
    chosen = choose([str(number) for number in range(1000)], classes, 10, 0)
    assert len({classes[index] for index in chosen}) == 10
    assert max(classes[index] for index in chosen) > "050"


def test_a_picture_more_elsewhere_does_not_change_who_comes_first() -> None:
    some = [f"{number}.jpg" for number in range(50)]
    few, more = choose(some, [""] * 50, 10, 0), choose([*some, "new.jpg"], [""] * 51, 10, 0)
    assert len(set(few) & set(more)) >= 9


# --- labels


def test_class_folders_give_labels_in_their_sorted_order(tmp_path: Path) -> None:
    for number in range(12):
        write(tmp_path / ("zebra", "ant", "bee")[number % 3] / f"{number}.png", picture(number))
    images = opened(tmp_path)
    assert images.description == f"12 of 12 pictures of the folder {tmp_path.name}, 3 class folders"
    assert [item.name.partition("/")[0] for item in images.items()] == ["ant"] * 4 + ["bee"] * 4 + ["zebra"] * 4
    assert [label for _, label in images.labelled()] == [0] * 4 + [1] * 4 + [2] * 4
    assert all(label is None for _, label in opened(tmp_path, labels=["x", "y"]).labelled())
    assert opened(tmp_path, labels=["x", "y"]).description.endswith("3 class folders, none of them a known class")


@pytest.mark.parametrize(
    ("folders", "labels", "expected"),
    [
        (["a", "b"], [], {"a": 0, "b": 1}),
        (["a", "b"], ["x", "y"], {"a": 0, "b": 1}),
        (["a", "b"], ["b", "c", "a"], {"a": 2, "b": 0}),
        (["Tiger_Shark", "tench"], ["tench", "goldfish", "tiger shark"], {"Tiger_Shark": 2, "tench": 0}),
        (["n01440764", "n01443537"], ["tench", "goldfish", "shark"], {}),
        (["crane", "tench"], ["crane", "tench", "crane"], {}),
        (["2", "3"], [str(digit) for digit in range(10)], {"2": 2, "3": 3}),
        ([], ["x"], {}),
    ],
)
def test_a_folder_bears_a_label_or_is_counted(folders: list[str], labels: list[str], expected: dict[str, int]) -> None:
    assert class_indexes(folders, labels) == expected


def test_a_class_folder_may_be_a_link(tmp_path: Path, folder: Path) -> None:
    linked = tmp_path / "linked"
    linked.mkdir()
    (linked / "cat").symlink_to(folder)
    assert [label for _, label in opened(linked, count=8).labelled()] == [0] * 8


# --- the hash


def test_the_hash_is_that_of_the_files_digests_in_sorted_order(folder: Path) -> None:
    digests = [hashlib.sha256(file.read_bytes()).digest() for file in sorted(folder.iterdir())]
    assert opened(folder).sha256 == hashlib.sha256(b"".join(digests)).hexdigest()


def test_a_changed_byte_changes_the_hash_and_a_new_name_does_not(folder: Path) -> None:
    before = opened(folder).sha256
    (folder / "00.png").rename(folder / "00a.png")
    assert opened(folder).sha256 == before
    content = bytearray((folder / "07.png").read_bytes())
    content[-1] ^= 1
    (folder / "07.png").write_bytes(content)
    assert opened(folder).sha256 != before


# --- the held-out part


def test_the_parts_share_no_image_and_lose_none(folder: Path) -> None:
    fit, held = opened(folder).divide(4)
    assert (len(fit), len(held)) == (15, 5)
    assert names(held) == [f"{number:02}.png" for number in (3, 7, 11, 15, 19)]
    assert sorted(names(fit) + names(held)) == names(opened(folder))
    assert held.description == "20 of 20 pictures of the folder pictures, 5 held out"
    assert len({fit.sha256, held.sha256, opened(folder).sha256}) == 3


@pytest.mark.parametrize(("least", "held"), [(1, 5), (5, 5), (6, 6), (7, 10), (10, 10)])
def test_more_are_held_out_where_a_part_needs_them(folder: Path, least: int, held: int) -> None:
    parts = opened(folder).divide(least=least)
    assert [len(part) for part in parts] == [20 - held, held]
    assert min(len(names(part)) for part in parts) >= least
    assert sorted(names(parts[0]) + names(parts[1])) == names(opened(folder))


def test_parts_that_would_be_too_small_are_refused_with_the_number_needed(folder: Path) -> None:
    with pytest.raises(InputError, match=r"22 or more are needed, 11 to fit on and 11 held out, .* is fixed; got 20\."):
        opened(folder).divide(least=11)


# --- broken ones


def test_a_broken_file_is_named_and_left_out(folder: Path) -> None:
    (folder / "05.png").write_bytes(b"not a picture")
    skipped: Skipped = []
    images = opened(folder, on_skip=lambda *told: skipped.append(told))
    assert len(list(images)) == 19
    assert [name for name, _ in skipped] == ["05.png"]
    assert skipped[0][1].startswith("expected an image (JPEG, PNG,")


def test_a_broken_file_gives_a_warning_where_nobody_listens(folder: Path) -> None:
    (folder / "05.png").write_bytes(b"")
    with pytest.warns(UserWarning, match=r"^calibration: left out 05\.png: "):
        assert len(list(opened(folder))) == 19


def test_labels_stay_with_their_images_where_one_is_broken(tmp_path: Path) -> None:
    for number in range(20):
        write(tmp_path / ("ant", "bee")[number // 10] / f"{number:02}.png", picture(number))
    (tmp_path / "ant" / "03.png").write_bytes(b"")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert [label for _, label in opened(tmp_path).labelled()] == [0] * 9 + [1] * 10


def test_more_than_one_in_twenty_broken_is_an_error_that_names_them(folder: Path) -> None:
    for number in (2, 9):
        (folder / f"{number:02}.png").write_bytes(b"")
    with pytest.raises(InputError) as caught:
        list(opened(folder, on_skip=lambda *_: None))
    message = str(caught.value)
    assert message.startswith(
        "calibration images, 20 of 20 pictures of the folder pictures: 2 of 20 cannot be used, at most 5 % may be: "
        "02.png (expected an image (JPEG"
    )
    assert "; 09.png (" in message and "\n" not in message


def test_a_missing_file_of_a_list_is_a_broken_one(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "list.txt"
    file.write_text("\n".join(f"pictures/{number:02}.png" for number in range(1, 21)))
    skipped: Skipped = []
    assert len(list(opened(file, on_skip=lambda *told: skipped.append(told)))) == 19
    assert skipped == [("pictures/20.png", "cannot be read (No such file or directory).")]


def test_a_recipe_that_does_not_fit_the_network_is_told_by_shape(folder: Path) -> None:
    wrong = Preprocessing("RGB", 9, "bilinear", (9, 9), 0, (0.5,) * 3, (0.25,) * 3)
    with pytest.raises(InputError, match=r"input 'image': expected float32 \(3, 8, 8\), got float32 \(3, 9, 9\)"):
        list(open_images(folder, INPUTS, wrong, on_skip=lambda *_: None))


# --- refused before anything is read


def test_fewer_than_eight_images_are_refused(tmp_path: Path) -> None:
    for number in range(7):
        write(tmp_path / f"{number}.png", picture(number))
    with pytest.raises(InputError, match=r"expected 8 images or more, got 7\.$"):
        opened(tmp_path)


def test_asking_for_fewer_than_eight_is_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"^--calib-images 7: expected 8 or more"):
        opened(folder, count=7)


@pytest.mark.parametrize("name", ["absent", "absent.txt", "absent.npz", "picture.png"])
def test_a_source_that_is_none_is_refused_with_what_could_be_one(tmp_path: Path, name: str) -> None:
    write(tmp_path / "picture.png", picture(0))
    with pytest.raises(InputError, match=r"expected an existing folder, \.txt list, \.npz or \.npy file, module"):
        opened(str(tmp_path / name))


def test_an_empty_folder_is_refused_with_the_suffixes(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected pictures \(\.jpg, .*\), found none"):
        opened(tmp_path)


def test_a_list_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match=r"cannot be read as a list of paths"):
        opened(tmp_path / "list.txt")


def test_pictures_for_a_network_that_takes_none_are_refused(folder: Path) -> None:
    with pytest.raises(InputError, match=r"the network's inputs are not one picture\. Give a \.npz file"):
        open_images(folder, INPUTS, None)
    with pytest.raises(InputError, match=r"the network's inputs are not one picture"):
        open_images(folder, (*INPUTS, Tensor("b", "float32", ("batch", 1))), RECIPE)
