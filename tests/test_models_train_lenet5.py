import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from engineworks.models import train_lenet5
from engineworks.models.train_lenet5 import RUBBISH, as_ink, as_input, criterion, distort, main, read_digits


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """An unpacked package of ten blobs a digit: digit d is a bright square that grows with d."""
    folder = tmp_path / "package" / "src" / "digits"
    folder.mkdir(parents=True)
    for digit in range(10):
        image = np.zeros((28, 28))
        image[4 : 6 + digit * 2, 4 : 6 + digit * 2] = 0.996
        (folder / f"{digit}.json").write_text(json.dumps({"data": np.tile(image.ravel(), 10).tolist()}))
    return tmp_path / "package"


def test_digits_are_read_whole_shuffled_and_always_alike(package: Path) -> None:
    images, labels = read_digits(package)
    again, _ = read_digits(package)
    assert images.shape == (100, 28, 28)
    assert np.bincount(labels).tolist() == [10] * 10
    assert not np.array_equal(labels, np.sort(labels))
    assert np.array_equal(images, again)
    assert images.max() == 254
    sides = 2 + 2 * labels.astype(int)
    assert np.array_equal((images > 0).sum((1, 2)), sides**2)


def test_the_criterion_is_equation_nine() -> None:
    distances = torch.tensor([[3.0, *[20.0] * 9], [50.0, *[2.0] * 9]])
    expected = [
        right + math.log(math.exp(-RUBBISH) + sum(math.exp(-each) for each in row))
        for right, row in ((3.0, [3.0, *[20.0] * 9]), (2.0, [50.0, *[2.0] * 9]))
    ]
    value = criterion(distances, torch.tensor([0, 1]))
    assert float(value) == pytest.approx(sum(expected) / 2, rel=1e-6)


def test_a_wrong_code_nearby_costs_and_one_far_beyond_rubbish_does_not() -> None:
    def cost(wrong: float) -> float:
        return float(criterion(torch.tensor([[1.0, *[wrong] * 9]]), torch.tensor([0])))

    assert cost(1.0) > cost(3.0) > cost(500.0)
    assert cost(500.0) == pytest.approx(cost(900.0))


def test_ink_is_centred_and_scaled_as_in_the_paper() -> None:
    image = np.zeros((1, 28, 28), np.uint8)
    image[0, 0, 0] = 255
    seen = as_input(as_ink(image))
    assert tuple(seen.shape) == (1, 1, 32, 32)
    assert float(seen[0, 0, 2, 2]) == pytest.approx(1.175)
    assert float(seen.min()) == pytest.approx(-0.1)


def test_a_distortion_depends_on_its_generator_alone_and_keeps_ink_in_range() -> None:
    ink = torch.rand(4, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    first, again, other = (distort(ink, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.shape == ink.shape
    assert 0 <= float(first.min()) <= float(first.max()) <= 1


def test_a_training_run_writes_what_is_packaged_and_the_same_again(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TRAINING": 80, "VALIDATION": 10, "PACKAGED": 5, "BATCH": 20}.items():
        monkeypatch.setattr(train_lenet5, name, value)
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    written = []
    for run in ("one", "two"):
        out = tmp_path / run
        out.mkdir()
        arguments = ["--data", package, "--out", out, "--held-out", out / "held_out.npz", "--epochs", "2"]
        assert main([str(each) for each in arguments]) == 0
        written.append({path.name: path.read_bytes() for path in out.iterdir()})
    assert written[0].keys() == {"lenet5.safetensors", "digits.npz", "held_out.npz"}
    assert written[0] == written[1]
    assert "of 20 correct" in capsys.readouterr().out
    with np.load(tmp_path / "one" / "digits.npz", allow_pickle=False) as file:
        assert np.array_equal(file["labels"], read_digits(package)[1][80:85])


def test_validation_writes_nothing_and_never_sees_what_is_held_out(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"TRAINING": 80, "VALIDATION": 10, "BATCH": 20}.items():
        monkeypatch.setattr(train_lenet5, name, value)
    monkeypatch.setattr(torch, "set_num_threads", lambda _count: None)
    out = tmp_path / "out"
    out.mkdir()
    assert main(["--data", str(package), "--out", str(out), "--epochs", "1", "--validate"]) == 0
    assert "of 10 correct" in capsys.readouterr().out
    assert not list(out.iterdir())
