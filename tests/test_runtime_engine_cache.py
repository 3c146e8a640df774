"""Which entry of the cache belongs to a bundle and a GPU, and which is not to be trusted."""

import os
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engineworks.runtime import BackendError, engine_cache, open_bundle, write_bundle
from engineworks.runtime.cuda import Gpu
from engineworks.runtime.engine_cache import close_to_others, doubt, doubt_folder, entry_name, find_entry, remove_old

L4 = Gpu("sm89", name="L4")


class Installed(dict[str, str]):
    """The versions of the compilers that are installed, as far as the cache looks."""

    def absent(self, flavour: str) -> str:
        return "" if flavour in self else "not there"

    def load(self, flavour: str) -> Any:
        return SimpleNamespace(__version__=self[flavour])


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """RTX 1.7 alone is installed."""
    made = Installed(rtx="1.7")
    monkeypatch.setattr(engine_cache, "absent", made.absent)
    monkeypatch.setattr(engine_cache, "load_module", made.load)
    return made


@pytest.fixture
def kept(bundle: Path, tmp_path: Path, installed: Installed) -> Callable[..., Path]:
    """Keep a copy of the bundle as an entry of the cache."""

    def keep(flavour: str = "rtx", version: str = "1.7", target: str = "sm89") -> Path:
        entry = tmp_path / "cache" / entry_name(open_bundle(bundle), flavour, version, target)
        shutil.copytree(bundle, entry)
        return entry

    return keep


def test_an_entry_is_found_again(kept: Callable[..., Path], bundle: Path) -> None:
    entry = kept()
    assert find_entry(open_bundle(bundle), entry.parent, L4) == entry


@pytest.mark.parametrize("other", [{"target": "sm86"}, {"flavour": "tensorrt"}])
def test_another_gpus_or_an_absent_compilers_entry_is_not(
    kept: Callable[..., Path], bundle: Path, other: dict[str, str]
) -> None:
    assert find_entry(open_bundle(bundle), kept(**other).parent, L4) is None


def test_the_installed_compilers_version_is_taken_though_another_was_made_later(
    kept: Callable[..., Path], bundle: Path, installed: Installed
) -> None:
    mine, newer = kept(version="1.7"), kept(version="1.9")
    os.utime(mine, (1, 1))
    assert find_entry(open_bundle(bundle), mine.parent, L4) == mine
    installed["rtx"] = "1.9"
    assert find_entry(open_bundle(bundle), mine.parent, L4) == newer


def test_one_compilers_stale_entry_does_not_hide_the_others(
    kept: Callable[..., Path], bundle: Path, installed: Installed
) -> None:
    installed["tensorrt"] = "11.4"
    kept("tensorrt", "10.9")
    entry = kept("rtx", "1.7")
    assert find_entry(open_bundle(bundle), entry.parent, L4) == entry


def test_a_compiler_that_does_not_import_has_no_entry_and_the_log_says_so(
    kept: Callable[..., Path], bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(flavour: str) -> Any:
        raise BackendError("tensorrt_rtx is installed but does not import")

    monkeypatch.setattr(engine_cache, "load_module", broken)
    assert find_entry(open_bundle(bundle), kept().parent, L4) is None
    assert "installed but does not import" in caplog.records[0].getMessage()


def test_a_compiler_without_an_entry_is_not_imported(
    kept: Callable[..., Path], bundle: Path, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed["tensorrt"] = "11.4"
    monkeypatch.setattr(
        engine_cache, "load_module", lambda flavour: SimpleNamespace(**{"rtx": {"__version__": "1.7"}}[flavour])
    )
    entry = kept()
    assert find_entry(open_bundle(bundle), entry.parent, L4) == entry


def test_without_a_gpu_or_a_cache_there_is_none(kept: Callable[..., Path], bundle: Path, tmp_path: Path) -> None:
    entry = kept()
    assert find_entry(open_bundle(bundle), entry.parent, Gpu(None, "none")) is None
    assert find_entry(open_bundle(bundle), tmp_path / "nowhere", L4) is None


def test_the_name_changes_with_the_graph_and_not_with_the_day(make_bundle: Callable[..., Path]) -> None:
    first, day = open_bundle(make_bundle()), "2027-01-01T00:00:00Z"
    again = replace(first, manifest=replace(first.manifest, created=day, engines=(), tools={}))
    other = open_bundle(
        make_bundle("other", files={"model.onnx": b"x", "engines/rtx.engine": b"", "reference.npz": b""})
    )
    names = [entry_name(one, "rtx", "1.7", "sm89") for one in (first, again, other)]
    assert names[0] == names[1] != names[2]


def test_a_name_that_is_no_files_becomes_one(bundle: Path) -> None:
    opened = open_bundle(bundle)
    strange = replace(opened, manifest=replace(opened.manifest, name="../a b/é" + "x" * 300))
    name = entry_name(strange, "rtx", "1.7", "sm89")
    assert "/" not in name and not name.startswith(".") and len(name) < 150


def places(entry: Path) -> tuple[Path, ...]:
    return entry, entry / "manifest.json", entry / "engines", entry / "engines" / "rtx.engine"


def test_an_entry_that_others_may_write_is_not_trusted_and_the_log_says_so(
    kept: Callable[..., Path], bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry = kept()
    assert doubt(entry, open_bundle(bundle)) == ""
    for place in places(entry):
        before = place.stat().st_mode
        place.chmod(before | 0o002)
        assert doubt(entry, open_bundle(bundle)) == "another user may have written it", place
        assert find_entry(open_bundle(bundle), entry.parent, L4) is None
        place.chmod(before)
    assert {record.getMessage() for record in caplog.records} == {
        f"the engine in {entry} is not used: another user may have written it"
    }


def test_our_own_group_may_write_an_entry_and_another_group_may_not(
    kept: Callable[..., Path], bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = kept()
    for place in places(entry):  # as Kubernetes' fsGroup leaves them
        place.chmod(place.stat().st_mode | 0o060)
    group = entry.stat().st_gid
    monkeypatch.setattr(os, "getegid", lambda: group + 1)
    monkeypatch.setattr(os, "getgroups", lambda: [group])
    assert doubt(entry, open_bundle(bundle)) == ""
    monkeypatch.setattr(os, "getgroups", lambda: [])
    assert doubt(entry, open_bundle(bundle)) == "another user may have written it"


@pytest.mark.parametrize("mask", [0o002, 0o000, 0o077])
def test_an_entry_made_under_any_umask_is_closed_to_others(
    bundle: Path, tmp_path: Path, mask: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = os.umask(mask)
    try:
        opened = open_bundle(bundle)
        entry = write_bundle(tmp_path / "entry", opened.manifest, {n: opened.read(n) for n in opened.manifest.files})
        close_to_others(entry.path)
    finally:
        os.umask(before)
    monkeypatch.setattr(os, "getegid", lambda: entry.path.stat().st_gid + 1)
    monkeypatch.setattr(os, "getgroups", lambda: [])
    assert doubt(entry.path, opened) == ""
    assert {place.stat().st_mode & 0o777 for place in places(entry.path)} == {0o755, 0o644}


def test_an_entry_that_bears_this_bundles_name_and_is_anothers_is_not_used(
    kept: Callable[..., Path], bundle: Path, make_bundle: Callable[..., Path], caplog: pytest.LogCaptureFixture
) -> None:
    entry = kept()
    shutil.rmtree(entry)
    files = {"model.onnx": b"another", "engines/rtx.engine": b"", "reference.npz": b""}
    shutil.copytree(make_bundle("other", files=files), entry)
    assert find_entry(open_bundle(bundle), entry.parent, L4) is None
    assert "it is another bundle's" in caplog.records[0].getMessage()


@pytest.mark.parametrize(("mode", "trusted"), [(0o777, False), (0o1777, True), (0o775, True), (0o755, True)])
def test_a_folder_in_which_others_may_rename_entries_is_not_trusted(
    kept: Callable[..., Path], bundle: Path, mode: int, trusted: bool
) -> None:
    entry = kept()
    entry.parent.chmod(mode)
    assert (find_entry(open_bundle(bundle), entry.parent, L4) == entry) is trusted
    assert (doubt_folder(entry.parent) == "") is trusted


@pytest.mark.parametrize("mode", [0o755, 0o1777])
def test_a_folder_of_another_users_is_not_trusted(
    kept: Callable[..., Path], bundle: Path, mode: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = kept()
    entry.parent.chmod(mode)
    real = Path.stat

    def owned(self: Path, **given: Any) -> Any:
        state = real(self, **given)
        if self != entry.parent:
            return state
        return SimpleNamespace(st_mode=state.st_mode, st_uid=os.geteuid() + 1, st_gid=state.st_gid)

    monkeypatch.setattr(Path, "stat", owned)
    assert doubt(entry, open_bundle(bundle)) == f"another user may write to {entry.parent}"


def test_a_link_in_a_files_place_is_not_trusted(kept: Callable[..., Path], bundle: Path) -> None:
    entry = kept()
    (entry / "engines" / "rtx.engine").rename(entry / "engines" / "real")
    (entry / "engines" / "rtx.engine").symlink_to("real")
    assert doubt(entry, open_bundle(bundle)) == "it holds something other than files"


@pytest.mark.parametrize("damage", [lambda entry: (entry / "manifest.json").unlink(), shutil.rmtree])
def test_what_is_no_bundle_is_not_trusted(
    kept: Callable[..., Path], bundle: Path, damage: Callable[[Path], Any]
) -> None:
    entry = kept()
    damage(entry)
    assert doubt(entry, open_bundle(bundle))


DAYS = 24 * 3600.0


def test_what_nobody_took_for_30_days_of_another_graph_of_the_name_is_removed(
    kept: Callable[..., Path], bundle: Path, make_bundle: Callable[..., Path]
) -> None:
    mine = kept()
    name, digest, rest = mine.name.split(".", 2)
    assert len(digest) == 16 and digest != "0" * 16
    ages = {f"{name}.{'0' * 16}.{rest}": 31, f"{name}.{'1' * 16}.{rest}": 29, f"{name}-2.{'0' * 16}.{rest}": 31}
    ages |= {"a-folder-of-the-users": 31, mine.name: 31}
    for place, days in ages.items():
        (mine.parent / place).mkdir(exist_ok=True)
        os.utime(mine.parent / place, (time.time() - days * DAYS,) * 2)
    remove_old(open_bundle(bundle), mine.parent)
    assert ages.keys() - {place.name for place in mine.parent.iterdir()} == {f"{name}.{'0' * 16}.{rest}"}


def test_an_entry_that_is_taken_is_young_again(kept: Callable[..., Path], bundle: Path) -> None:
    entry = kept()
    os.utime(entry, (1, 1))
    assert find_entry(open_bundle(bundle), entry.parent, L4) == entry
    assert entry.stat().st_mtime > time.time() - DAYS
