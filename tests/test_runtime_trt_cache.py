"""TensorRT-RTX's runtime cache: kept beside the bundle, whole or not at all, and read only where it can be trusted."""

import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks.runtime import open_bundle
from engineworks.runtime.backend import Speed, open_bundle_session
from engineworks.runtime.manifest import EngineRecord
from engineworks.runtime.trt_cache import RuntimeCache, cache_paths
from engineworks.runtime.trt_session import TrtSession

BATCH = np.zeros((1, 3, 8, 8), np.float32)


@pytest.fixture
def start(
    fake_host: Any, make_bundle: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., TrtSession]:
    """Open the same bundle as a new process would, with what the fake RTX then has compiled."""
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(tmp_path / "user" / "cache"))
    path = make_bundle(engines=(EngineRecord("engines/rtx.engine", "rtx", "1.7.1.116", ("sm89",), 3, {}),))

    def opened(cache: bytes, speed: Speed | None = None, **plan: Any) -> TrtSession:
        fake_host.plan.events.clear()
        fake_host.install(cache=cache, **plan)
        session = open_bundle_session(open_bundle(path), backend="rtx", speed=speed or Speed())
        assert isinstance(session, TrtSession)
        return session

    return opened


Start = Callable[..., TrtSession]


def caches(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.rtx-cache"))


def test_what_was_compiled_is_found_at_the_next_start(start: Start, fake_host: Any, tmp_path: Path) -> None:
    start(b"kernels").close()
    (file,) = caches(tmp_path)
    assert file.parent == tmp_path and file.name.startswith("four-fp16.sm89-") and file.read_bytes() == b"kernels"
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    session = start(b"kernels")
    assert "cache read b'kernels'" in fake_host.plan.events
    assert session.notes == ()
    session.close()


def test_kernels_for_a_new_batch_size_are_kept_at_once(start: Start, fake_host: Any, tmp_path: Path) -> None:
    session = start(b"first")
    fake_host.plan.cache = b"first and second"
    session.run({"image": BATCH}, ["scores"])
    assert caches(tmp_path)[0].read_bytes() == b"first and second"
    fake_host.plan.cache = b"unchanged sizes are not asked again"
    session.run({"image": BATCH}, ["scores"])
    assert caches(tmp_path)[0].read_bytes() == b"first and second"
    session.close()
    assert caches(tmp_path)[0].read_bytes() == b"unchanged sizes are not asked again"


def test_an_unchanged_cache_is_not_written_again(start: Start, tmp_path: Path) -> None:
    start(b"kernels").close()
    before = caches(tmp_path)[0].stat().st_mtime_ns, caches(tmp_path)[0].stat().st_ino
    start(b"kernels").close()
    assert (caches(tmp_path)[0].stat().st_mtime_ns, caches(tmp_path)[0].stat().st_ino) == before


def test_a_cache_of_another_gpu_or_version_is_noted_and_replaced(start: Start, tmp_path: Path) -> None:
    start(b"old").close()
    session = start(b"new", accepts_cache=False)
    assert session.notes[0].endswith("is of another GPU, driver or version: compiled again")
    session.close()
    assert caches(tmp_path)[0].read_bytes() == b"new"


def test_beside_a_bundle_that_cannot_be_written_the_users_folder_is_taken(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import tempfile

    real = tempfile.mkstemp

    def refuse(prefix: str, dir: Path) -> Any:
        if Path(dir) == tmp_path:
            raise OSError(30, os.strerror(30))
        return real(prefix=prefix, dir=dir)

    monkeypatch.setattr(tempfile, "mkstemp", refuse)
    session = start(b"kernels")
    assert [file.parent for file in caches(tmp_path)] == [tmp_path / "user" / "cache" / "rtx"]
    assert session.notes == ()
    session.close()


def test_a_cache_that_can_be_kept_nowhere_is_noted_and_nothing_fails(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(prefix: str, dir: Path) -> Any:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    session = start(b"kernels")
    session.run({"image": BATCH}, ["scores"])
    (note,) = session.notes
    assert note.startswith("runtime cache not kept (") and "No space left on device" in note
    assert note.endswith("the next start compiles again")
    session.close()


def test_a_write_that_fails_half_way_leaves_the_old_cache(
    start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start(b"old").close()

    def fail(handle: int) -> None:
        raise OSError(5, os.strerror(5))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", fail)
        start(b"new").close()
    assert caches(tmp_path)[0].read_bytes() == b"old"
    assert [file for file in tmp_path.iterdir() if file.name.startswith(".four")] == []


@pytest.mark.parametrize("harm", ["group", "world", "link", "folder", "pipe"])
def test_a_cache_that_another_may_have_written_is_not_read(
    start: Start, fake_host: Any, tmp_path: Path, harm: str
) -> None:
    start(b"kernels").close()
    (file,) = caches(tmp_path)
    if harm in {"group", "world"}:
        file.chmod(0o620 if harm == "group" else 0o602)
    else:
        target = file.rename(tmp_path / "elsewhere")
        if harm == "link":
            file.symlink_to(target)
        elif harm == "folder":
            file.mkdir()
        else:
            os.mkfifo(file)
    session = start(b"")
    assert not any(event.startswith("cache read") for event in fake_host.plan.events)
    assert any("not read: " in note for note in session.notes)
    session.close()


@pytest.mark.parametrize(
    ("fails", "note"),
    [
        ({"create_runtime_cache": None}, "no runtime cache: TensorRT-RTX gave none"),
        ({"set_runtime_cache": False}, "no runtime cache: TensorRT-RTX did not take it"),
    ],
)
def test_an_rtx_without_a_cache_runs_all_the_same(start: Start, fails: dict[str, Any], note: str) -> None:
    session = start(b"kernels", fails=fails)
    assert session.notes == (note,)
    assert session.run({"image": BATCH}, ["scores"])[0].shape == (1, 4)
    session.close()


@pytest.mark.parametrize(("asked", "got"), [("lazy", "LAZY"), ("eager", "EAGER"), ("none", "NONE"), ("", "EAGER")])
def test_kernels_are_specialised_as_asked_and_eagerly_by_default(
    start: Start, fake_host: Any, asked: Any, got: str
) -> None:
    start(b"", speed=Speed(specialisation=asked) if asked else None).close()
    assert fake_host.plan.configured["dynamic_shapes_kernel_specialization_strategy"] == got


def test_each_engine_and_gpu_has_a_cache_of_its_own(bundle: Path) -> None:
    opened = open_bundle(bundle)
    (record,) = opened.manifest.engines
    one, other = (cache_paths(opened, record, target)[0] for target in ("sm86", "sm89"))
    assert one.parent == other.parent == bundle.parent and one != other


def test_a_user_without_a_home_has_the_place_beside_the_bundle_alone(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def homeless() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", homeless)
    for name in ("ENGINEWORKS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    opened = open_bundle(bundle)
    assert len(cache_paths(opened, opened.manifest.engines[0], "sm89")) == 1


def test_an_api_without_a_cache_is_left_alone() -> None:
    cache = RuntimeCache(())
    cache.attach(object())
    cache.save()
    assert cache.notes == []
