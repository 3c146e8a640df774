"""A file on its way: digested elsewhere, handed over only when it is right, closed whatever happens."""

import threading
from pathlib import Path
from typing import Any

import pytest

from engineworks.runtime import BundleError, load, open_bundle
from engineworks.runtime.ahead import Ahead


def descriptors() -> int:
    if not Path("/proc/self/fd").exists():
        pytest.skip("only where open files can be counted")
    return len(list(Path("/proc/self/fd").iterdir()))


def damage(file: Path) -> None:
    content = file.read_bytes()
    file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))


def test_the_path_leads_to_the_bytes_that_were_digested(bundle: Path) -> None:
    before = descriptors()
    with Ahead(open_bundle(bundle), "model.onnx") as file:
        assert Path(file.path()).read_bytes() == (bundle / "model.onnx").read_bytes()
    assert descriptors() == before


def test_a_damaged_file_has_no_path_and_leaves_nothing_open(bundle: Path) -> None:
    damage(bundle / "model.onnx")
    before = descriptors()
    for _ in range(2):
        with Ahead(open_bundle(bundle), "model.onnx") as file, pytest.raises(BundleError, match="edited or damaged"):
            file.path()
    assert descriptors() == before


def test_an_error_meanwhile_is_the_one_that_is_raised_and_the_file_is_closed(bundle: Path) -> None:
    before = descriptors()
    with pytest.raises(KeyError), Ahead(open_bundle(bundle), "model.onnx"):
        raise KeyError
    assert descriptors() == before


def test_where_no_thread_can_be_started_it_is_digested_here(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with Ahead(open_bundle(bundle), "model.onnx") as file:
        assert Path(file.path()).exists()


@pytest.mark.parametrize("name", ["model.onnx", "reference.npz", "engines/rtx.engine"])
def test_nothing_native_sees_a_byte_where_any_file_is_damaged(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    opened: list[Any] = []
    monkeypatch.setattr("engineworks.runtime.backend.open_session", lambda *given, **more: opened.append(given))
    damage(bundle / name)
    with pytest.raises(BundleError, match="edited or damaged"):
        load(bundle, device="cpu")
    assert opened == []
