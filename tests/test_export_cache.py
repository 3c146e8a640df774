"""Bundles made before: found by what went into them, believed only undamaged, trimmed from the oldest."""

import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from engineworks import runtime
from engineworks.export import cache
from engineworks.export.recipe import Recipe
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

RECIPE = Recipe("net")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own."""
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("ENGINEWORKS_CACHE_BYTES", raising=False)
    return tmp_path / "cache" / "bundles"


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def test_the_folder_is_the_one_asked_for_else_the_users(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert cache.cache_folder() == tmp_path / "cache"
    monkeypatch.delenv("ENGINEWORKS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache.cache_folder() == tmp_path / "xdg" / "engineworks"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache.cache_folder() == tmp_path / "home" / ".cache" / "engineworks"


CHANGES: dict[str, Any] = {
    "model": "other",
    "precision": "fp16",
    "weights": "best.pth",
    "batch": Batch(1, 8, 33),
    "opset": 21,
    "engine": "none",
    "targets": ("sm86",),
    "simplify": "onnxslim",
}


@pytest.mark.parametrize("field", CHANGES)
def test_another_recipe_has_another_key(field: str) -> None:
    other = replace(RECIPE, **{field: CHANGES[field]})
    assert cache.key_of(other, "digest", "any") != cache.key_of(RECIPE, "digest", "any")


def test_the_same_export_has_the_same_key() -> None:
    assert cache.key_of(RECIPE, "digest", "any") == cache.key_of(Recipe("net"), "digest", "any")
    assert len(cache.key_of(RECIPE, "digest", "any")) == 64


def test_other_weights_another_gpu_and_another_date_have_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOURCE_DATE_EPOCH", raising=False)
    keys = {cache.key_of(RECIPE, *rest) for rest in (("a", "any"), ("b", "any"), ("a", "sm89"), ("", "aany"))}
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1")
    assert len(keys | {cache.key_of(RECIPE, "a", "any")}) == 5


@pytest.mark.parametrize(
    "tool", ["torch", "onnx", "onnxruntime-gpu", "numpy", "tensorrt-rtx-cu13", "onnxsim", "engineworks"]
)
def test_another_version_of_a_tool_has_another_key(monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    before = cache.key_of(RECIPE, "digest", "any")
    real = metadata.version
    monkeypatch.setattr(metadata, "version", lambda name: "99" if name.replace("_", "-") == tool else real(name))
    assert cache.key_of(RECIPE, "digest", "any") != before


def test_one_changed_byte_of_our_own_code_has_another_key(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    package = Path(cache.__file__).parent.parent
    for name in ("calibration", "export", "models", "runtime"):
        (tmp_path / "copy" / name).mkdir(parents=True)
        for file in (package / name).iterdir():
            if file.is_file():
                shutil.copy(file, tmp_path / "copy" / name)
    monkeypatch.setattr(cache, "__file__", str(tmp_path / "copy" / "export" / "cache.py"))
    uncached: Callable[[], str] = cache._code.__wrapped__
    before = uncached()
    for name in ("export/half.py", "models/lenet5.safetensors", "runtime/preprocess.py", "calibration/ranges.py"):
        with (tmp_path / "copy" / name).open("ab") as stream:
            stream.write(b"\n")
        assert uncached() != before, name
        before = uncached()


def test_other_code_has_another_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = cache.key_of(RECIPE, "digest", "any")
    monkeypatch.setattr(cache, "_code", lambda: "other")
    assert cache.key_of(RECIPE, "digest", "any") != before


def test_what_is_kept_is_fetched_whole(bundle: Path, tmp_path: Path) -> None:
    cache.keep("a" * 64, runtime.open_bundle(bundle))
    fetched = cache.fetch("a" * 64, tmp_path / "out", force=False)
    assert fetched is not None
    assert fetched.path == tmp_path / "out"
    fetched.verify()
    assert tree(tmp_path / "out") == tree(bundle)


def test_what_was_never_kept_is_not_found(tmp_path: Path) -> None:
    assert cache.fetch("b" * 64, tmp_path / "out", force=False) is None
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("damage", ["cut", "edited", "gone", "manifest", "empty"])
def test_a_damaged_entry_is_not_found_and_is_removed(bundle: Path, tmp_path: Path, folder: Path, damage: str) -> None:
    cache.keep("a" * 64, runtime.open_bundle(bundle))
    kept = folder / ("a" * 64)
    graph = kept / "model.onnx"
    if damage == "cut":
        os.truncate(graph, 10)
    elif damage == "edited":
        graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    elif damage == "gone":
        graph.unlink()
    elif damage == "manifest":
        text = (kept / "manifest.json").read_text()
        (kept / "manifest.json").write_text(text.replace("four-fp16", "five-fp16"))
    else:
        (kept / "manifest.json").write_bytes(b"")
    assert cache.fetch("a" * 64, tmp_path / "out", force=False) is None
    assert not (tmp_path / "out").exists()
    assert not kept.exists()


def test_a_folder_that_stands_there_is_replaced_only_with_force(bundle: Path, tmp_path: Path) -> None:
    cache.keep("a" * 64, runtime.open_bundle(bundle))
    (tmp_path / "out").mkdir()
    with pytest.raises(FileExistsError):
        cache.fetch("a" * 64, tmp_path / "out", force=False)
    assert cache.fetch("a" * 64, tmp_path / "out", force=True) is not None


def test_the_least_recently_used_go_first(
    bundle: Path, tmp_path: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = sum(len(data) for data in tree(bundle).values())
    monkeypatch.setenv("ENGINEWORKS_CACHE_BYTES", str(3 * size + 10))
    for age, key in enumerate(["a", "b", "c"]):
        cache.keep(key, runtime.open_bundle(bundle))
        os.utime(folder / key, (1000 + age, 1000 + age))
    assert cache.fetch("a", tmp_path / "out", force=False) is not None  # used: now the youngest
    cache.keep("d", runtime.open_bundle(bundle))
    assert sorted(entry.name for entry in folder.iterdir()) == ["a", "c", "d"]


def test_the_newest_stays_even_where_it_alone_is_too_large(
    bundle: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEWORKS_CACHE_BYTES", "1")
    for key in ("a", "b"):
        cache.keep(key, runtime.open_bundle(bundle))
    assert [entry.name for entry in folder.iterdir()] == ["b"]


def test_a_limit_that_is_no_number_is_an_error_of_the_cache_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ENGINEWORKS_CACHE_BYTES", "lots")
    with pytest.raises(OSError, match="ENGINEWORKS_CACHE_BYTES: expected a number of bytes, got 'lots'"):
        cache.keep("a", runtime.open_bundle(bundle))


def test_a_cache_that_cannot_be_stamped_is_still_read(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.keep("a", runtime.open_bundle(bundle))

    def refuse(*_: Any, **__: Any) -> None:
        raise PermissionError

    monkeypatch.setattr(os, "utime", refuse)
    assert cache.fetch("a", tmp_path / "out", force=False) is not None


def test_a_cache_that_is_a_file_cannot_be_written(bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("not a folder")
    with pytest.raises(NotADirectoryError):
        cache.keep("a", runtime.open_bundle(bundle))
    assert cache.fetch("a", tmp_path / "out", force=False) is None


def test_versions_name_what_is_installed_and_nothing_else() -> None:
    found = cache.versions()
    assert {"engineworks", "numpy", "onnx", "torch"} <= set(found)
    assert "tensorrt" not in found or cache._version("tensorrt")
    assert all(version and "_" not in name for name, version in found.items())


def test_a_user_without_a_home_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    for name in ("ENGINEWORKS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(ExportError, match="Set ENGINEWORKS_CACHE"):
        cache.cache_folder()
