"""inspect-model tells what a bundle holds, what it is worth, and never ends in a traceback."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engineworks.runtime import Manifest, open_bundle
from engineworks.runtime.inspect import main
from engineworks.runtime.manifest import Rung, Weights

Make = Callable[..., Path]
Capture = pytest.CaptureFixture[str]
UNTRAINED = Weights("seed", "0", False, None, None)
COMMAND = "import sys; from engineworks.runtime.inspect import run; sys.argv[0] = 'inspect-model'; run()"


def test_the_output_tells_everything_a_person_asks_for(bundle: Path, capsys: Capture) -> None:
    assert main([str(bundle)]) == 0
    told = capsys.readouterr()
    assert told.err == ""
    engine = open_bundle(bundle).manifest.files["engines/rtx.engine"].sha256[:12]
    lines = [
        "four-fp16 (four, fp16)",
        "  model      four: nobody 2026",
        "  weights    file: four.safetensors; CC0-1.0",
        "  precision  asked fp16; weighted layers float16 × 1",
        "  inputs     image float32 (batch, 3, 8, 8)",
        "  outputs    scores float32 (batch, 4) (logits)",
        "  batch      1 to 8, usually 4",
        "  graph      3 nodes, opset 18, simplifier none",
        "  parity     onnx-fp16 against pytorch-fp32, batch 2: 60.5 dB (needs 40.0), largest difference 0.001, "
        "cosine 0.9999990, top-1 100%, top-5 100%",
        "  engine     rtx 1.7 for sm_89; Half × 1",
        "  note       made for a test",
        f"  file       engines/rtx.engine, 1,280 bytes, sha256 {engine}…",
    ]
    assert [line for line in lines if line not in told.out.splitlines()] == []


def test_equal_outputs_are_called_equal_bit_for_bit(bundle: Path, capsys: Capture) -> None:
    main([str(bundle)])
    assert "onnx-fp32 against pytorch-fp32, batch 2: bit for bit (needs 40.0)" in capsys.readouterr().out


def test_untrained_weights_are_shouted_in_the_first_line_and_beside_the_weights(
    make_bundle: Make, capsys: Capture
) -> None:
    assert main([str(make_bundle(weights=UNTRAINED))]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "four-fp16 (four, fp16, UNTRAINED weights: its answers mean nothing)"
    assert "  weights    UNTRAINED, seed: 0" in lines


def test_trained_weights_are_not_called_untrained(bundle: Path, capsys: Capture) -> None:
    main([str(bundle)])
    assert "UNTRAINED" not in capsys.readouterr().out


def test_json_is_the_manifest_byte_for_byte(bundle: Path, capsys: Capture) -> None:
    assert main(["--json", str(bundle)]) == 0
    told = capsys.readouterr()
    assert told.out.encode() == (bundle / "manifest.json").read_bytes()
    assert told.err == ""
    assert json.loads(told.out)["name"] == "four-fp16"


def test_a_bundle_that_says_little_is_still_described(make_bundle: Make, capsys: Capture) -> None:
    bare: dict[str, Any] = {"graph": {}, "engines": (), "parity": (), "notes": (), "labels": (), "outputs": ()}
    assert main([str(make_bundle(**bare))]) == 0
    assert "  graph      unknown nodes, opset unknown, simplifier unknown" in capsys.readouterr().out.splitlines()


def test_multiply_adds_are_shown_where_they_are_recorded(make_bundle: Make, capsys: Capture) -> None:
    graph: dict[str, Any] = {"nodes": 3, "opset": 18, "simplifier": "none", "multiply_adds": 1_814_073_344}
    assert main([str(make_bundle(graph=graph))]) == 0
    line = "  graph      3 nodes, opset 18, simplifier none, 1,814,073,344 multiply-adds an image"
    assert line in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    "damage",
    [
        lambda folder: (folder / "model.onnx").write_bytes(b""),
        lambda folder: (folder / "engines" / "rtx.engine").unlink(),
        lambda folder: (folder / "manifest.json").unlink(),
        lambda folder: (folder / "manifest.json").write_bytes(b"\xff\x00"),
        lambda folder: (folder / "manifest.json").write_text("[" * 100_000),
        lambda folder: (folder / "manifest.json").write_text('{"schema": NaN}'),
        lambda folder: (folder / "manifest.json").write_text('{"schema": 1, "digest": 5}'),
        lambda folder: (folder / "manifest.json").write_text('{"schema": 7}'),
    ],
)
def test_a_damaged_bundle_is_one_line_on_stderr_and_status_1(
    bundle: Path, capsys: Capture, damage: Callable[[Path], object]
) -> None:
    damage(bundle)
    for arguments in ([str(bundle)], [str(bundle), "--json"]):
        assert main(arguments) == 1
        told = capsys.readouterr()
        assert told.out == ""
        assert re.fullmatch(r"inspect-model: [^\n]+\n", told.err)


@pytest.mark.parametrize("name", ["absent", "", ".", "x" * 5000, "a b/[c]"])
def test_what_is_no_bundle_is_status_1(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, name: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main([name]) == 1
    assert re.fullmatch(r"inspect-model: [^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize("arguments", [[], ["a", "b"], ["--yaml", "a"], ["--json"]])
def test_wrong_usage_is_status_2_with_the_usage(capsys: Capture, arguments: list[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("Usage: inspect-model [OPTIONS] BUNDLE")


@pytest.mark.parametrize("flag", ["-h", "--help"])
def test_help_is_status_0(capsys: Capture, flag: str) -> None:
    assert main([flag]) == 0
    assert "Show what is in BUNDLE" in capsys.readouterr().out


def test_a_bundle_whose_name_begins_with_a_dash_can_be_named(
    make_bundle: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = make_bundle("-json")
    monkeypatch.chdir(path.parent)
    assert main(["--", "-json"]) == 0


TEXTS = st.text(max_size=8)


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.sampled_from(["nodes", "opset", "simplifier", "multiply_adds", "else"]), st.none() | TEXTS | st.integers()
    )
)
def test_whatever_a_manifest_says_of_its_graph_is_described(
    tmp_path_factory: pytest.TempPathFactory, manifest: Manifest, graph: dict[str, Any]
) -> None:
    from engineworks.runtime.bundle import Bundle
    from engineworks.runtime.inspect import describe

    assert list(describe(Bundle(tmp_path_factory.getbasetemp(), replace(manifest, graph=graph))))


@pytest.mark.parametrize("figure", [1e-320, 1.7e308, -5.0, 0.0])
def test_any_figure_can_be_shown(make_bundle: Make, capsys: Capture, figure: float) -> None:
    rung = Rung("a", "b", "c", 1, figure, figure, figure, figure, figure, figure, figure, "floor")
    assert main([str(make_bundle(parity=(rung,)))]) == 0
    assert "a against b" in capsys.readouterr().out


# --- as a process


def command(*arguments: str, **environment: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", COMMAND, *arguments],
        capture_output=True,
        check=False,
        env=os.environ | environment,
    )


def test_a_terminal_that_does_not_know_every_sign_gets_no_traceback(bundle: Path) -> None:
    found = command(str(bundle), PYTHONIOENCODING="latin-1")
    assert (found.returncode, found.stderr) == (0, b"")
    assert b"float16 \xd7 1" in found.stdout
    assert b"\\u2026" in found.stdout


@pytest.mark.parametrize("flag", ["--json", "--"])
def test_a_reader_that_went_away_gets_no_traceback(bundle: Path, flag: str) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    found = subprocess.run(
        [sys.executable, "-c", COMMAND, flag, bundle], stdout=writer, stderr=subprocess.PIPE, check=False
    )
    os.close(writer)
    assert (found.returncode, found.stderr) == (1, b"")


def test_a_name_that_is_no_utf8_gets_no_traceback(bundle: Path) -> None:
    odd = os.fsencode(bundle.parent) + b"/b\xff"
    os.rename(bundle, odd)  # noqa: PTH104
    found = subprocess.run([sys.executable, "-c", COMMAND, odd], capture_output=True, check=False)
    assert (found.returncode, found.stderr) == (0, b"")
    (Path(os.fsdecode(odd)) / "model.onnx").unlink()
    found = subprocess.run([sys.executable, "-c", COMMAND, odd], capture_output=True, check=False)
    assert found.returncode == 1
    assert b"Traceback" not in found.stderr


def test_control_codes_in_a_manifest_do_not_reach_the_terminal(
    make_bundle: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(make_bundle(notes=("\x1b[2J gone",), name="four"))]) == 0
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert r"\x1b[2J gone" in out
