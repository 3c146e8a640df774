"""A bundle gets an engine for another GPU than it was made on, by the real compiler, without torch or onnx."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engineworks import runtime
from engineworks.export import rebuild
from engineworks.export.engine import read_plan_header
from engineworks.runtime import engine_cache
from engineworks.runtime.manifest import Precision

pytest.importorskip("tensorrt_rtx", reason="TensorRT-RTX is not installed")
DATA = Path(__file__).parent / "data"
FLOAT = Precision("fp32", {"fp32": 1})


@pytest.fixture
def plain(make_bundle: Callable[..., Path]) -> Path:
    """A bundle in float32 without an engine."""
    return make_bundle("four", {"model.onnx": (DATA / "four_classes.onnx").read_bytes()}, engines=(), precision=FLOAT)


def arguments(bundle: Path, cache: Path, target: str = "sm89") -> list[str]:
    return [str(bundle), "--cache", str(cache), "--target", target, "--flavour", "rtx"]


def test_the_bundle_in_the_cache_has_an_engine_for_that_gpu(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rebuild.main(arguments(plain, tmp_path / "cache" / "deep")) == 0
    entry = Path(capsys.readouterr().out.strip())
    made, before = runtime.open_bundle(entry), runtime.open_bundle(plain)
    made.verify()
    (record,) = made.manifest.engines
    header = read_plan_header(made.read(record.file))
    assert (record.flavour, record.targets) == ("rtx", ("sm89",))
    assert header is not None and header.targets == ("sm89",)
    assert made.manifest.name == before.manifest.name
    assert made.read("model.onnx") == before.read("model.onnx")
    assert engine_cache.doubt(entry, runtime.open_bundle(plain)) == ""


def test_an_old_entry_of_another_graph_goes_when_a_new_one_is_written(plain: Path, tmp_path: Path) -> None:
    old = tmp_path / "cache" / f"{runtime.open_bundle(plain).manifest.name}.{'0' * 16}.rtx-1.0-sm89"
    old.mkdir(parents=True)
    os.utime(old, (1, 1))
    assert rebuild.main(arguments(plain, tmp_path / "cache")) == 0
    assert not old.exists()


def test_what_the_cache_has_is_not_compiled_again(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rebuild.main(arguments(plain, tmp_path / "cache")) == 0
    monkeypatch.setattr(rebuild, "compile_engine", lambda *_, **__: pytest.fail("compiled again"))
    assert rebuild.main(arguments(plain, tmp_path / "cache")) == 0
    first, second = capsys.readouterr().out.split()
    assert first == second


def test_an_entry_compiled_under_an_open_umask_is_found(plain: Path, tmp_path: Path) -> None:
    before = os.umask(0o002)
    try:
        assert rebuild.main(arguments(plain, tmp_path / "cache")) == 0
    finally:
        os.umask(before)
    (entry,) = (tmp_path / "cache").iterdir()
    assert {place.stat().st_mode & 0o777 for place in (entry, *entry.rglob("*"))} == {0o755, 0o644}
    assert engine_cache.doubt(entry, runtime.open_bundle(plain)) == ""


def test_a_damaged_entry_is_made_anew(plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert rebuild.main(arguments(plain, tmp_path / "cache")) == 0
    entry = Path(capsys.readouterr().out.strip())
    (engine,) = (entry / "engines").iterdir()
    engine.write_bytes(engine.read_bytes()[:-1] + b"x")
    assert rebuild.main(arguments(plain, tmp_path / "cache")) == 0
    runtime.open_bundle(entry).verify()


def test_a_gpu_that_the_compiler_does_not_know_is_one_sentence(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert rebuild.main(arguments(plain, tmp_path / "cache", "sm90")) == 1
    said = capsys.readouterr().err
    assert said.startswith("rebuild: rtx: ") and "sm90" in said and said.count("\n") == 1
    assert not (tmp_path / "cache").exists()


def test_a_bundle_that_says_another_precision_than_the_compiler_reads_gets_none(
    make_bundle: Callable[..., Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {"model.onnx": (DATA / "four_classes.onnx").read_bytes()}
    bundle = make_bundle("four", files, engines=(), precision=Precision("bf16", {"bf16": 1}))
    assert rebuild.main(arguments(bundle, tmp_path / "cache")) == 1
    assert "asked for bf16" in capsys.readouterr().err


def test_a_cache_that_cannot_be_written_leaves_nothing(
    plain: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_bytes(b"")
    assert rebuild.main(arguments(plain, tmp_path / "file")) == 1
    assert "rebuild: cannot" in capsys.readouterr().err


def test_nothing_is_compiled_into_a_folder_that_others_may_write(
    plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "cache").mkdir()
    (tmp_path / "cache").chmod(0o777)
    monkeypatch.setattr(rebuild, "compile_engine", lambda *_, **__: pytest.fail("compiled"))
    assert rebuild.main(arguments(plain, tmp_path / "cache")) == 1
    assert f"another user may write to {tmp_path / 'cache'}, so no engine" in capsys.readouterr().err


def test_a_full_disk_leaves_nothing(plain: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("engineworks.runtime.files.NewFolder.write", full)
    with pytest.raises(runtime.BundleError, match=r"No space left on device. Nothing was left behind"):
        rebuild.rebuild(runtime.open_bundle(plain), tmp_path / "cache", "sm89", ("rtx",))
    assert list((tmp_path / "cache").iterdir()) == []


def test_it_needs_neither_torch_nor_onnx(plain: Path, tmp_path: Path) -> None:
    code = (
        "import sys; sys.modules.update(torch=None, onnx=None, onnxscript=None)\n"
        "from engineworks.export.rebuild import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments(plain, tmp_path / "cache")], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert Path(done.stdout.strip()).is_dir()


@pytest.mark.slow
def test_an_engine_whose_plan_shows_another_precision_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With no RTX engine asked for, a transposed convolution is int8; TensorRT-RTX computes it in float16."""
    pytest.importorskip("torch", reason="the bundle is made by export, which is not installed here")
    from engineworks.export.inputs import InputSpec
    from engineworks.export.pipeline import export_model
    from engineworks.export.recipe import Recipe

    (tmp_path / "net.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef make():\n    torch.manual_seed(0)\n"
        "    return nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(16, 16, 2, 2))\n"
    )
    np.savez(tmp_path / "rows.npz", input=np.random.default_rng(0).standard_normal((16, 3, 16, 16)).astype(np.float32))
    recipe = Recipe(
        f"{tmp_path / 'net.py'}:make", precision="int8", engine="none", calib_data=str(tmp_path / "rows.npz"),
        shapes=(InputSpec("", (3, 16, 16)),), quality="fast",
    )  # fmt: skip
    export_model(recipe, tmp_path / "bundle", use_cache=False)
    assert rebuild.main(arguments(tmp_path / "bundle", tmp_path / "cache", "sm86")) == 1
    assert (
        "do not compute in the engine for sm86 as asked: node__2 (asked int8, found float16)" in capsys.readouterr().err
    )
    assert not [*(tmp_path / "cache").glob("*")]
