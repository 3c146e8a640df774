"""A bundle is read without trust and written whole: damage, hostile names, and targets that may not be written."""

import json
import os
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.runtime import Bundle, BundleError, Manifest, load, open_bundle, write_bundle
from engineworks.runtime import manifest as manifests
from engineworks.runtime.bundle import check_target
from engineworks.runtime.manifest import FileRecord

Make = Callable[..., Path]


def edit(file: Path, change: Callable[[bytes], bytes]) -> None:
    file.write_bytes(change(file.read_bytes()))


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_what_was_written_is_read_back(bundle: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    opened = open_bundle(bundle)
    opened.verify()
    assert {name: opened.read(name) for name in opened.manifest.files} == contents
    assert replace(opened.manifest, files={}) == manifest


def test_writing_returns_the_bundle_that_opening_returns(
    tmp_path: Path, manifest: Manifest, contents: dict[str, bytes]
) -> None:
    assert write_bundle(tmp_path / "b", manifest, contents) == open_bundle(tmp_path / "b")


def test_the_folder_holds_the_files_and_the_manifest_and_nothing_else(bundle: Path, contents: dict[str, bytes]) -> None:
    assert tree(bundle).keys() == contents.keys() | {"manifest.json"}
    assert names(bundle.parent) == [bundle.name]


def test_the_same_content_gives_the_same_bytes(make_bundle: Make) -> None:
    assert tree(make_bundle("one")) == tree(make_bundle("other"))


@pytest.mark.parametrize("name", ["a b", "[x]*?", "größe-网络", "-o", "name.with.dots", " ", "'\"$(x)", "x" * 200])
def test_any_name_a_folder_can_have_will_do(make_bundle: Make, name: str) -> None:
    path = make_bundle(name)
    open_bundle(path).verify()
    assert names(path.parent) == [name]


def test_a_text_and_a_path_and_a_link_open_the_same_bundle(bundle: Path) -> None:
    link = bundle.with_name("link")
    link.symlink_to(bundle)
    assert open_bundle(str(bundle)).manifest == open_bundle(bundle).manifest == open_bundle(link).manifest


def test_a_relative_name_is_enough(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(bundle)
    open_bundle(".").verify()


# --- damage


@settings(max_examples=80)
@given(data=st.data())
def test_any_flipped_bit_of_any_file_is_refused(
    data: st.DataObject, manifest: Manifest, contents: dict[str, bytes], tmp_path_factory: pytest.TempPathFactory
) -> None:
    folder = tmp_path_factory.getbasetemp() / "flip"
    if not folder.exists():
        write_bundle(folder, manifest, contents)
    content = tree(folder)
    name = data.draw(st.sampled_from(sorted(content)))
    created = content[name].find(b'"created"') if name == "manifest.json" else len(content[name])
    free = range(created + 12, created + 34) if name == "manifest.json" else range(0)  # the time is not covered
    position = data.draw(st.integers(0, len(content[name]) - 1).filter(lambda number: number not in free))
    bit = data.draw(st.integers(0, 7))
    flipped = bytearray(content[name])
    flipped[position] ^= 1 << bit
    (folder / name).write_bytes(flipped)
    try:
        bundle = open_bundle(folder)
        bundle.verify()
        harmless = (
            bundle.manifest == manifests.parse(content["manifest.json"].decode(), "x") and name == "manifest.json"
        )
        assert harmless, f"{name}, byte {position}, bit {bit}"  # white space of the manifest alone may change
    except BundleError:
        pass
    finally:
        (folder / name).write_bytes(content[name])


@pytest.mark.parametrize("name", ["model.onnx", "engines/rtx.engine", "reference.npz"])
def test_an_edited_file_is_refused_with_both_digests(bundle: Path, name: str) -> None:
    edit(bundle / name, lambda content: content[:-1] + bytes([content[-1] ^ 1]))
    message = rf"^bundle four-fp16: {name} was edited or damaged: expected sha256 \w{{12}}…, got \w{{12}}…\. Re-run"
    with pytest.raises(BundleError, match=message):
        open_bundle(bundle).verify()


@pytest.mark.parametrize("name", ["model.onnx", "engines/rtx.engine", "reference.npz"])
def test_loading_refuses_damage_in_a_file_that_it_would_not_use(bundle: Path, name: str) -> None:
    edit(bundle / name, lambda content: bytes(len(content)))
    with pytest.raises(BundleError, match=f"{name} was edited or damaged"):
        load(bundle)


@pytest.mark.parametrize("keep", [0, 1, -1])
def test_a_truncated_file_is_refused_with_both_sizes(bundle: Path, keep: int) -> None:
    size = (bundle / "model.onnx").stat().st_size
    edit(bundle / "model.onnx", lambda content: content[:keep])
    got = len(range(size)[:keep])
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle).verify()
    assert str(caught.value) == (
        f"bundle four-fp16: model.onnx is damaged: expected {size} bytes, got {got}. Re-run export-model."
    )


def test_a_file_swollen_past_all_memory_is_refused_unread(bundle: Path) -> None:
    os.truncate(bundle / "model.onnx", 1 << 42)
    with pytest.raises(BundleError, match="is damaged: expected 294 bytes, got 4398046511104"):
        open_bundle(bundle).read("model.onnx")


def test_a_removed_file_is_named(bundle: Path) -> None:
    (bundle / "engines/rtx.engine").unlink()
    with pytest.raises(BundleError) as caught:
        load(bundle)
    assert str(caught.value) == "bundle four-fp16: cannot read engines/rtx.engine (No such file or directory)."


def test_a_pipe_in_place_of_a_file_does_not_block(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    os.mkfifo(bundle / "model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx is not a file"):
        load(bundle)


def test_a_folder_in_place_of_a_file_is_refused(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").mkdir()
    with pytest.raises(BundleError, match=r"model\.onnx is not a file"):
        load(bundle)


def test_a_file_that_is_not_listed_cannot_be_read(bundle: Path) -> None:
    (bundle / "extra").write_bytes(b"x")
    with pytest.raises(BundleError) as caught:
        open_bundle(bundle).read("extra")
    assert str(caught.value) == (
        "bundle four-fp16: has no extra; it holds engines/rtx.engine, model.onnx, reference.npz."
    )


def test_damage_is_refused_before_any_native_code_sees_a_byte(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    edit(bundle / "engines/rtx.engine", lambda content: content[:-1] + b"x")
    opened: list[str] = []
    monkeypatch.setattr("onnxruntime.InferenceSession", lambda *given, **more: opened.append("a graph"))
    with pytest.raises(BundleError, match=r"rtx\.engine was edited or damaged"):
        load(bundle)
    assert opened == []


# --- what is no bundle


def test_a_folder_without_a_manifest_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path)
    assert str(caught.value) == (
        f"{tmp_path} has no manifest.json, so it is no bundle. Expected what export-model wrote."
    )


@pytest.mark.parametrize("name", ["absent", "model.onnx", "\0"])
def test_what_is_not_a_folder_is_said_to_be_none(tmp_path: Path, name: str) -> None:
    (tmp_path / "model.onnx").write_bytes(b"")
    with pytest.raises(BundleError, match=r"is not a folder\. Expected what export-model wrote\.$"):
        open_bundle(tmp_path / name)


def test_a_name_that_is_too_long_is_refused_with_our_own_error() -> None:
    with pytest.raises(BundleError):
        open_bundle("x" * 5000)


def test_a_link_to_itself_is_refused_with_our_own_error(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(BundleError):
        open_bundle(tmp_path / "loop")


def test_a_manifest_of_unlikely_size_is_not_read(bundle: Path) -> None:
    os.truncate(bundle / "manifest.json", (64 << 20) + 1)
    with pytest.raises(BundleError, match=r"manifest\.json is over 64 MiB; not ours\.$"):
        open_bundle(bundle)


@settings(max_examples=150)
@given(st.binary(max_size=80) | st.sampled_from([b"[" * 100_000, b"\xff\xfe{", b'{"schema": 1}', b'{"schema": NaN}']))
def test_junk_for_a_manifest_is_refused_with_our_own_error(
    tmp_path_factory: pytest.TempPathFactory, junk: bytes
) -> None:
    folder = tmp_path_factory.getbasetemp() / "junk"
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_bytes(junk)
    with pytest.raises(BundleError):
        open_bundle(folder)


# --- names that leave the folder

ESCAPES = [
    "../x",
    "a/../../x",
    "a/../model.onnx",
    "/etc/hostname",
    "",
    ".",
    "..",
    "a\\b",
    "a\0b",
    "a\nb",
    "\x1b[31m",
    "./x",
    "a//b",
    "a/",
]


@pytest.mark.parametrize("name", [*ESCAPES, "manifest.json"])
def test_a_listed_name_that_leaves_the_bundle_is_refused(tmp_path: Path, manifest: Manifest, name: str) -> None:
    listed = replace(manifest, files={name: FileRecord("0" * 64, 0)})
    (tmp_path / "manifest.json").write_text(manifests.dump(listed), encoding="utf-8")
    with pytest.raises(BundleError) as caught:
        open_bundle(tmp_path)
    assert str(caught.value) == f"bundle {tmp_path.name}: the file name {name!r} leaves the bundle; refused."


@pytest.mark.parametrize("name", [*ESCAPES, "manifest.json"])
def test_no_file_is_written_outside_the_bundle(tmp_path: Path, manifest: Manifest, name: str) -> None:
    with pytest.raises(BundleError, match="leaves the bundle; refused"):
        write_bundle(tmp_path / "b", manifest, {name: b"x"})
    assert names(tmp_path) == []


def test_a_link_that_leaves_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (bundle / "model.onnx").rename(outside)
    (bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match=r"the file name 'model\.onnx' leaves the bundle; refused"):
        open_bundle(bundle)


def test_a_link_of_a_folder_that_leaves_the_bundle_is_refused(bundle: Path, tmp_path: Path) -> None:
    (bundle / "engines").rename(tmp_path / "outside")
    (bundle / "engines").symlink_to(tmp_path / "outside")
    with pytest.raises(BundleError, match=r"the file name 'engines/rtx\.engine' leaves the bundle; refused"):
        open_bundle(bundle)


def test_a_listed_link_to_itself_is_refused_with_our_own_error(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("model.onnx")
    with pytest.raises(BundleError):
        open_bundle(bundle).verify()


# --- targets


def test_an_existing_bundle_is_not_replaced_without_force(
    bundle: Path, manifest: Manifest, contents: dict[str, bytes]
) -> None:
    before = tree(bundle)
    with pytest.raises(BundleError) as caught:
        write_bundle(bundle, replace(manifest, name="other"), contents)
    assert str(caught.value) == f"{bundle} exists. Pass --force to replace it, or -o for another folder."
    assert tree(bundle) == before


def test_force_replaces_a_bundle_whole(bundle: Path, manifest: Manifest) -> None:
    write_bundle(bundle, replace(manifest, name="other"), {"only": b"x"}, force=True)
    assert tree(bundle).keys() == {"manifest.json", "only"}
    assert open_bundle(bundle).manifest.name == "other"
    assert names(bundle.parent) == [bundle.name]


def test_force_replaces_a_damaged_bundle(bundle: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    edit(bundle / "model.onnx", lambda content: b"")
    write_bundle(bundle, manifest, contents, force=True)
    open_bundle(bundle).verify()


def test_force_replaces_an_empty_folder(tmp_path: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    (tmp_path / "b").mkdir()
    write_bundle(tmp_path / "b", manifest, contents, force=True).verify()


def test_force_needs_nothing_to_replace(tmp_path: Path, manifest: Manifest, contents: dict[str, bytes]) -> None:
    write_bundle(tmp_path / "b", manifest, contents, force=True).verify()


@pytest.mark.parametrize("inside", [".", "engines"])
def test_force_does_not_pull_away_the_folder_one_stands_in(
    bundle: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch, inside: str
) -> None:
    (bundle / inside).mkdir(exist_ok=True)
    monkeypatch.chdir(bundle / inside)
    before = tree(bundle)
    with pytest.raises(BundleError, match="is the folder that you are in; it cannot be replaced under you"):
        write_bundle(bundle, manifest, {"only": b"x"}, force=True)
    assert tree(bundle) == before
    assert names(bundle.parent) == [bundle.name]


@pytest.mark.parametrize(
    "content", [None, "", "[]", "{}", '{"name": "a web application"}', '{"schema": 1}', "[" * 100_000, "\ud800"]
)
def test_force_does_not_replace_what_is_no_bundle(tmp_path: Path, manifest: Manifest, content: str | None) -> None:
    folder = tmp_path / "thesis"
    folder.mkdir()
    (folder / "thesis.tex").write_text("years of work")
    if content is not None:
        (folder / "manifest.json").write_bytes(content.encode("utf-8", "surrogatepass"))
    before = tree(folder)
    with pytest.raises(BundleError) as caught:
        write_bundle(folder, manifest, {"x": b""}, force=True)
    assert (
        str(caught.value) == f"{folder} holds something other than a bundle, so --force does not replace it. Pass -o."
    )
    assert tree(folder) == before


def test_force_replaces_a_bundle_of_a_later_schema(bundle: Path, manifest: Manifest) -> None:
    content = json.loads((bundle / "manifest.json").read_text()) | {"schema": 2}
    (bundle / "manifest.json").write_text(json.dumps(content))
    write_bundle(bundle, manifest, {"only": b"x"}, force=True).verify()


@pytest.mark.parametrize("kind", ["file", "link to a bundle", "dangling link"])
def test_force_does_not_replace_a_file_or_a_link(bundle: Path, manifest: Manifest, kind: str) -> None:
    target = bundle.with_name("target")
    if kind == "file":
        target.write_bytes(b"precious")
    else:
        target.symlink_to(bundle if kind == "link to a bundle" else "nowhere")
    with pytest.raises(BundleError, match=r"is not a folder, so --force does not replace it\. Remove it, or pass -o"):
        write_bundle(target, manifest, {"x": b""}, force=True)
    assert target.is_symlink() or target.read_bytes() == b"precious"
    open_bundle(bundle).verify()


@pytest.mark.parametrize("kind", ["file", "dangling link", "empty folder"])
def test_nothing_that_exists_is_written_over_without_force(tmp_path: Path, manifest: Manifest, kind: str) -> None:
    target = tmp_path / "target"
    {
        "file": target.touch,
        "dangling link": lambda: target.symlink_to("nowhere"),
        "empty folder": target.mkdir,
    }[kind]()
    with pytest.raises(BundleError, match=r"exists\. Pass --force"):
        write_bundle(target, manifest, {"x": b""})
    assert names(tmp_path) == ["target"]


def test_a_missing_parent_is_named(tmp_path: Path, manifest: Manifest) -> None:
    out = tmp_path / "no" / "b"
    with pytest.raises(BundleError) as caught:
        write_bundle(out, manifest, {"x": b""})
    assert str(caught.value) == f"cannot write {out}: the folder {out.parent} does not exist. Make it first."
    assert names(tmp_path) == []


def test_a_parent_that_nobody_can_write_to_is_refused(manifest: Manifest) -> None:
    out = Path("/proc/self/engineworks")
    with pytest.raises(BundleError, match=r"^cannot write /proc/self/engineworks: [A-Z].*\.$"):
        write_bundle(out, manifest, {"x": b""})


@pytest.mark.parametrize("name", ["x" * 5000, "y" * 255])
def test_a_target_whose_name_is_too_long_is_refused(tmp_path: Path, manifest: Manifest, name: str) -> None:
    with pytest.raises(BundleError, match="File name too long"):
        write_bundle(tmp_path / name, manifest, {"x": b""})
    assert names(tmp_path) == []


def test_checking_a_target_leaves_no_trace(tmp_path: Path) -> None:
    check_target(tmp_path / "b", force=False)
    assert names(tmp_path) == []


def test_files_that_stand_in_each_other_s_way_leave_nothing_behind(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(BundleError, match=r"Nothing was left behind\.$"):
        write_bundle(tmp_path / "b", manifest, {"a": b"", "a/b": b""})
    assert names(tmp_path) == []


def test_a_reader_beside_a_writer_gets_the_right_bytes_or_our_own_error(tmp_path: Path, manifest: Manifest) -> None:
    """Written in between the two steps of a reader: the manifest of one bundle, the file of another."""
    one, other = {"file": b"one"}, {"file": b"two"}
    write_bundle(tmp_path / "b", manifest, one)
    opened = open_bundle(tmp_path / "b")
    write_bundle(tmp_path / "b", manifest, other, force=True)
    with pytest.raises(BundleError, match="file was edited or damaged"):
        opened.read("file")


def test_a_bundle_can_be_moved(bundle: Path) -> None:
    moved = bundle.rename(bundle.with_name("elsewhere"))
    open_bundle(moved).verify()


def test_large_and_empty_files_keep_their_bytes(make_bundle: Make) -> None:
    files = {"large": random.Random(0).randbytes(3 << 20), "empty": b"", "deep/er/and/deeper": b"x"}
    opened: Bundle = open_bundle(make_bundle(files=files))
    assert {name: opened.read(name) for name in files} == files
