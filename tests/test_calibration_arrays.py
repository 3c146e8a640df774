"""Arrays are taken as they are, row by row, after names, dtypes and shapes have been held against the network's."""

import hashlib
import io
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.calibration.images import open_images
from engineworks.runtime import InputError, Tensor

IMAGE = Tensor("image", "float32", ("batch", 3, 4, 4))
SIZE = Tensor("size", "int64", ("batch", 2))
X = np.random.default_rng(0).standard_normal((20, 3, 4, 4)).astype(np.float32)
SIZES = np.arange(40).reshape(20, 2)


def opened(file: Path, inputs: Any = (IMAGE,), **options: Any) -> Any:
    return open_images(file, inputs, None, **options)


@pytest.mark.parametrize("kind", ["npy", "npz", "compressed"])
def test_rows_come_as_they_are_in_their_order(tmp_path: Path, kind: str) -> None:
    file = tmp_path / ("x.npy" if kind == "npy" else "x.npz")
    {"npy": np.save, "npz": np.savez, "compressed": np.savez_compressed}[kind](file, X)
    images = opened(file)
    assert images.description == f"20 of 20 rows of {file.name}"
    assert np.array_equal(np.concatenate([row["image"] for row in images]), X)
    assert [row["image"].shape for row in images] == [(1, 3, 4, 4)] * 20


def test_several_inputs_are_found_by_name(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", size=SIZES, image=X, other=np.zeros(3))
    for number, row in enumerate(opened(tmp_path / "x.npz", (IMAGE, SIZE))):
        assert np.array_equal(row["image"][0], X[number]) and np.array_equal(row["size"][0], SIZES[number])


def test_a_part_of_the_rows_is_chosen_in_order(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    images = opened(tmp_path / "x.npy", count=8)
    numbers = [next(n for n in range(20) if np.array_equal(X[n], row["image"][0])) for row in images]
    assert numbers == sorted(set(numbers)) and len(numbers) == 8


def test_the_hash_depends_on_values_and_on_nothing_of_the_file(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    np.savez_compressed(tmp_path / "y.npz", image=X)
    np.save(tmp_path / "z.npy", X[::-1].copy())
    one, same, other = (opened(tmp_path / name).sha256 for name in ("x.npy", "y.npz", "z.npy"))
    assert one == same != other
    row = hashlib.sha256(b"image <f4 (1, 3, 4, 4)\n" + X[0].tobytes()).digest()
    assert next(iter(opened(tmp_path / "x.npy").items())).content().endswith(X[0].tobytes())
    assert hashlib.sha256(next(iter(opened(tmp_path / "x.npy").items())).content()).digest() == row


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": X, "b": X}, r"expected arrays image, got a, b"),
        ({"image": X.astype(np.float64)}, r"input 'image': expected float32 \(3, 4, 4\), got float64 \(3, 4, 4\)"),
        ({"image": X[:, :, :3]}, r"expected float32 \(3, 4, 4\), got float32 \(3, 3, 4\)"),
        ({"image": X[0, 0, 0]}, r"expected float32 \(3, 4, 4\), got float32 \(\)"),
        ({"image": np.float32(1)}, r"expected a plain array with a first axis, got float32 \(\)"),
        ({"image": np.asfortranarray(X)}, r"expected a plain array with a first axis, got Fortran's order"),
        ({"image": X[:0]}, r"expected as many rows, 1 or more, of every input, got \{'image': 0\}"),
        ({"image": X[:7]}, r"expected 8 images or more, got 7"),
    ],
)
def test_arrays_that_do_not_fit_are_refused_before_a_row_is_read(
    tmp_path: Path, arrays: dict[str, Any], words: str
) -> None:
    np.savez(tmp_path / "x.npz", **arrays)
    with pytest.raises(InputError, match=words):
        opened(tmp_path / "x.npz")


def test_inputs_of_different_lengths_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", image=X, size=SIZES[:19])
    with pytest.raises(InputError, match=r"got \{'image': 20, 'size': 19\}"):
        opened(tmp_path / "x.npz", (IMAGE, SIZE))


def test_python_objects_are_refused_and_never_loaded(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.array([{}] * 9, dtype=object), allow_pickle=True)
    with pytest.raises(InputError, match=r"expected a plain array with a first axis, got object"):
        opened(tmp_path / "x.npy")


def test_one_file_of_one_array_for_two_inputs_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", X)
    with pytest.raises(InputError, match=r"the network has 2 inputs\. Save them by name with np\.savez"):
        opened(tmp_path / "x.npy", (IMAGE, SIZE))


@pytest.mark.parametrize("keep", [0, 5, 60, 100])
@pytest.mark.parametrize("name", ["x.npy", "x.npz"])
def test_a_file_cut_short_in_its_header_is_refused(tmp_path: Path, name: str, keep: int) -> None:
    stream = io.BytesIO()
    np.save(stream, X) if name == "x.npy" else np.savez(stream, image=X)
    (tmp_path / name).write_bytes(stream.getvalue()[:keep])
    with pytest.raises(InputError, match=rf"^{name}: cannot be read as arrays"):
        opened(tmp_path / name)


def test_a_file_cut_short_in_its_values_is_refused_when_they_are_read(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.save(stream, X)
    (tmp_path / "x.npy").write_bytes(stream.getvalue()[:-1])
    with pytest.raises(InputError, match=r"^x\.npy: the array ends early\. Write the file again\.$"):
        list(opened(tmp_path / "x.npy"))


def test_a_large_file_is_not_held_in_memory(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "x.npz", np.zeros((200, 3, 256, 256), np.float32))  # 157 MB unpacked
    code = (
        "import resource\nfrom engineworks.calibration.images import open_images\n"
        "from engineworks.runtime import Tensor\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        f"images = open_images({str(tmp_path / 'x.npz')!r}, (Tensor('i', 'float32', ('n', 3, 256, 256)),), None)\n"
        "assert sum(1 for _ in images) == 128\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 40_000  # KB; a row has 768
