"""Where weights come from, known before torch is imported."""

import hashlib
import importlib.util
from dataclasses import replace
from pathlib import Path

import pytest

from engineworks.export import source
from engineworks.export.recipe import Recipe
from engineworks.models import NETWORKS
from engineworks.models.errors import UnknownModelError, WeightsError
from engineworks.runtime.errors import ExportError


def test_shipped_weights_are_trained_and_carry_their_digest(tmp_path: Path) -> None:
    found = source.resolve(Recipe("lenet5"), tmp_path)
    shipped = NETWORKS["lenet5"].shipped_path
    assert shipped is not None
    assert found.weights.origin == "shipped"
    assert found.weights.trained
    assert found.weights.sha256 == hashlib.sha256(shipped.read_bytes()).hexdigest() == found.identity


def test_a_network_without_weights_is_untrained_and_known_by_its_seed(tmp_path: Path) -> None:
    found = source.resolve(Recipe("resnet18"), tmp_path)
    assert not found.weights.trained
    assert found.identity == "seed 0"
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_known_by_its_digest_and_named_without_its_folder(tmp_path: Path) -> None:
    file = tmp_path / "best.pth"
    file.write_bytes(b"weights")
    found = source.resolve(Recipe("resnet18", weights=str(file)), tmp_path)
    assert found.weights.detail == "best.pth"
    assert found.identity == hashlib.sha256(b"weights").hexdigest()


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"--weights \S+/none\.pth: there is no such file"):
        source.resolve(Recipe("resnet18", weights=str(tmp_path / "none.pth")), tmp_path)
    with pytest.raises(WeightsError, match="there is no such file"):
        source.resolve(Recipe("resnet18", weights=str(tmp_path)), tmp_path)


def test_what_was_never_published_is_refused_without_a_look_at_the_network(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="--weights imagenet: none were published for lenet5"):
        source.resolve(Recipe("lenet5", weights="imagenet"), tmp_path)


def test_an_unknown_network_comes_with_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UnknownModelError, match=r"no network is called 'resnet19': did you mean .*resnet18"):
        source.resolve(Recipe("resnet19"), tmp_path)


@pytest.mark.parametrize("name", ["torch", "onnx", "onnxscript", "safetensors"])
def test_a_missing_package_comes_with_its_pip_line(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda asked: None if asked == name else real(asked))
    with pytest.raises(ExportError, match=rf'^{name} is not installed.*pip install "engineworks\[export\]"$'):
        source.check_installed(Recipe("lenet5"))


def test_the_published_file_is_known_by_its_digest_however_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.pth"
    file.write_bytes(b"as published")
    network = NETWORKS["googlenet"]
    assert network.published is not None
    published = replace(network.published, sha256=hashlib.sha256(b"as published").hexdigest()[:8])
    monkeypatch.setitem(NETWORKS, "googlenet", replace(network, published=published))
    made = source.resolve(Recipe("googlenet", weights=str(file)), tmp_path)
    assert made.weights.origin == "published"
    assert made.weights.licence == published.licence
    assert made.preprocessing is not None
    assert made.preprocessing["mean"] == [0.5, 0.5, 0.5]
    file.write_bytes(b"retrained")
    again = source.resolve(Recipe("googlenet", weights=str(file)), tmp_path)
    assert again.preprocessing is not None
    assert again.preprocessing["mean"] == [0.485, 0.456, 0.406]
