"""The command export-model: exit statuses, what goes where, and that nothing is left behind."""

import contextlib
import importlib.util
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from engineworks import runtime
from engineworks.export.cli import main
from engineworks.models import NETWORKS

# Ctrl-C works as at a terminal, also where the tests were started in the background, which ignores it
LISTEN = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); "
COMMAND = [sys.executable, "-c", LISTEN + "from engineworks.export.cli import run; run()"]
HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx")
FAST = ("--engine", "none", "--batch", "1:2:3")  # every file but the engine; the same code paths
Said = tuple[int, str, str]


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache that this file's tests share."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def say(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kept: Path
) -> Callable[..., Said]:
    """Run the command in this process, in an empty folder; its status, stdout and stderr."""
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(kept))
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Said:
        status = main(list(arguments))
        return status, *capsys.readouterr()

    return run


@pytest.fixture
def spawn(tmp_path: Path, kept: Path) -> Callable[..., subprocess.Popen[str]]:
    """Start the command as a process of its own, in an empty folder."""

    def start(*arguments: str, program: list[str] = COMMAND, **options: Any) -> subprocess.Popen[str]:
        environment = os.environ | {"ENGINEWORKS_CACHE": str(kept), "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            [*program, *arguments],
            cwd=tmp_path,
            env=environment | options.pop("env", {}),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    return start


def finish(process: subprocess.Popen[str]) -> Said:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def one_line(err: str) -> str:
    """Return a known failure's message, which is the last line and no traceback."""
    assert "Traceback" not in err
    last = err.strip().splitlines()[-1]
    assert last.startswith("export-model: ")
    return last


# --- usage ---


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ((), r"which MODEL\? export-model --list"),
        (("lenet5", "--fp16", "--bf16"), "--fp16 and --bf16 contradict each other"),
        (("lenet5", "--fp32", "--fp16"), "--fp32 and --fp16 contradict each other"),
        (("lenet5", "--target", "sm86", "--engine", "none"), "--target and --engine none contradict each other"),
        (("lenet5", "--target", "sm86", "--engine", "tensorrt"), "--target and --engine tensorrt contradict"),
        (("lenet5", "--batch", "8:1:32"), r"--batch.*expected 1 ≤ MIN ≤ OPT ≤ MAX ≤ 65536, got '8:1:32'"),
        (("lenet5", "--batch", "many"), r"--batch.*expected MIN:OPT:MAX, such as 1:8:32"),
        (("lenet5", "--batch", "٣"), "--batch"),
        (("lenet5", "--batch", "0"), "--batch"),
        (("lenet5", "--target", "sm90"), "--target.*no Hopper.*--engine tensorrt"),
        (("lenet5", "--target", "sm42"), "--target.*compiles for sm75"),
        (("lenet5", "--target", "fast"), "--target.*no compute capability"),
        (("lenet5", "--opset", "17"), "--opset"),
        (("lenet5", "--opset", "24"), "--opset"),
        (("lenet5", "--engine", "magic"), "--engine"),
        (("lenet5", "--simplify", "yes"), "--simplify"),
        (("lenet5", "--fast"), "No such option"),
        (("lenet5", "resnet18"), "unexpected extra argument"),
        (("lenet5", "-o"), "-o"),
    ],
)  # fmt: skip
def test_wrong_usage_exits_2_and_names_the_flags(
    say: Callable[..., Said], arguments: tuple[str, ...], why: str
) -> None:
    import re

    status, out, err = say(*arguments)
    assert status == 2
    assert out == ""
    assert re.search(why, " ".join(err.split()))
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []


def test_the_list_names_every_network(say: Callable[..., Said]) -> None:
    status, out, err = say("--list")
    assert (status, err) == (0, "")
    assert [line.split()[0] for line in out.splitlines()] == ["network", *NETWORKS]
    assert "shipped" in next(line for line in out.splitlines() if line.startswith("lenet5"))


def test_the_list_comes_as_json_too(say: Callable[..., Said]) -> None:
    status, out, err = say("--list", "--json")
    assert (status, err) == (0, "")
    assert [record["name"] for record in json.loads(out)] == list(NETWORKS)


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_names_every_flag(say: Callable[..., Said], flag: str) -> None:
    status, out, err = say(flag)
    assert (status, err) == (0, "")
    flags = (
        "--fp32 --fp16 --bf16 --weights --batch --engine --target --opset --simplify --force --no-cache --json --list"
    )
    assert not [flag for flag in (*flags.split(), "-q", "-o") if flag not in out]


def imported(spawn: Callable[..., subprocess.Popen[str]], *arguments: str) -> set[str]:
    """Run the command and tell which heavy packages it imported."""
    code = (
        "import sys\nfrom engineworks.export.cli import main\nstatus = main(sys.argv[1:])\n"
        f"print([name for name in {HEAVY!r} if name in sys.modules], file=sys.stderr)\nsys.exit(status)"
    )
    status, _, err = finish(spawn(*arguments, program=[sys.executable, "-c", code]))
    assert status == 0, err
    return set(json.loads(err.strip().splitlines()[-1].replace("'", '"')))


def test_asking_for_help_imports_nothing_heavy(spawn: Callable[..., subprocess.Popen[str]]) -> None:
    assert imported(spawn, "--help") == set()
    assert imported(spawn, "--list") == imported(spawn, "--list", "--json") == set()


# --- a whole export ---


def test_stdout_holds_the_path_alone_and_stderr_the_talk(say: Callable[..., Said], tmp_path: Path) -> None:
    status, out, err = say("lenet5", "--fp16", *FAST, "--no-cache")
    assert status == 0
    assert out == "lenet5-fp16\n"
    assert [line.split()[0] for line in err.splitlines()] == [
        "weights", "build", "inputs", "graph", "onnx-fp32", "onnx-fp16", "engine", "bundle",
    ]  # fmt: skip
    runtime.open_bundle(tmp_path / "lenet5-fp16").verify()


def test_json_prints_the_manifest(say: Callable[..., Said], tmp_path: Path) -> None:
    status, out, _ = say("lenet5", *FAST, "--json", "-o", "here")
    assert status == 0
    assert json.loads(out) == json.loads((tmp_path / "here" / "manifest.json").read_text())


def test_quiet_says_nothing_where_all_is_well(say: Callable[..., Said]) -> None:
    status, out, err = say("lenet5", *FAST, "-q", "-o", "here")
    assert (status, out, err) == (0, "here\n", "")


def test_quiet_still_says_untrained(say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch) -> None:
    from dataclasses import replace

    monkeypatch.setitem(NETWORKS, "lenet5", replace(NETWORKS["lenet5"], shipped=None))
    status, _, err = say("lenet5", *FAST, "-q", "-o", "here", "--no-cache")
    assert status == 0
    assert err.startswith("weights            UNTRAINED (seed 0): its answers mean nothing.")
    status, out, err = say("lenet5", *FAST, "--json", "-o", "there", "--no-cache")
    assert json.loads(out)["weights"]["trained"] is False
    assert "UNTRAINED weights" in err.splitlines()[-1]


def test_a_second_run_is_a_cache_hit_that_imports_nothing_heavy(
    say: Callable[..., Said], spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert say("lenet5", "--fp16", *FAST, "-o", "first")[0] == 0
    assert imported(spawn, "lenet5", "--fp16", *FAST, "-o", "second") <= {"numpy"}
    for file in (tmp_path / "first").iterdir():
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes()


# --- bad input ---


def test_an_unknown_model_exits_1_with_the_nearest_names(say: Callable[..., Said]) -> None:
    status, out, err = say("resnet19")
    assert (status, out) == (1, "")
    assert one_line(err).startswith("export-model: no network is called 'resnet19': did you mean resnet18 or resnet1")


@pytest.mark.parametrize("name", ["", "../lenet5", "LENET5", "x" * 500, "lenet5\n", "-"])
def test_a_name_that_is_none_is_no_traceback(say: Callable[..., Said], name: str) -> None:
    status, out, err = say("--", name)
    assert status in {1, 2}
    assert out == ""
    assert "Traceback" not in err
    assert list(Path().iterdir()) == []


def test_a_folder_that_stands_there_needs_force(say: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "note.txt").write_text("mine")
    status, _, err = say("lenet5", *FAST, "-o", "out")
    assert status == 1
    assert one_line(err) == "export-model: out exists. Pass --force to replace it, or -o for another folder."
    status, _, err = say("lenet5", *FAST, "-o", "out", "--force")
    assert status == 1
    assert "holds something other than a bundle, so --force does not replace it" in one_line(err)
    assert (tmp_path / "out" / "note.txt").read_text() == "mine"


def test_force_replaces_a_bundle_an_empty_folder_and_nothing_else(say: Callable[..., Said], tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert say("lenet5", *FAST, "-o", "empty", "--force")[0] == 0
    assert say("lenet5", "--fp16", *FAST, "-o", "empty", "--force")[0] == 0
    assert runtime.open_bundle(tmp_path / "empty").manifest.precision.asked == "fp16"
    (tmp_path / "file").write_text("a file")
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    for name in ("file", "link"):
        status, _, err = say("lenet5", *FAST, "-o", name, "--force")
        assert status == 1
        assert "is not a folder, so --force does not replace it" in one_line(err)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["empty", "file", "link"]


def test_a_parent_that_is_missing_is_named(say: Callable[..., Said]) -> None:
    status, _, err = say("lenet5", *FAST, "-o", "no/such/out")
    assert status == 1
    assert one_line(err) == "export-model: cannot write no/such/out: the folder no/such does not exist. Make it first."


def checkpoint(state: Any, path: Path) -> str:
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return str(path)


def lenet5_state() -> dict[str, Any]:
    from safetensors.torch import load_file

    path = NETWORKS["lenet5"].shipped_path
    assert path is not None
    return load_file(path)


def test_a_checkpoint_that_does_not_fit_names_five_of_each_and_counts_all(
    say: Callable[..., Said], tmp_path: Path
) -> None:
    state = lenet5_state()
    missing = sorted(state)[:7]
    wrong = {name: tensor for name, tensor in state.items() if name not in missing}
    wrong |= {f"extra{index}": next(iter(state.values())).clone() for index in range(6)}
    status, _, err = say("lenet5", *FAST, "--weights", checkpoint(wrong, tmp_path / "w.safetensors"), "-o", "out")
    message = one_line(err)
    assert status == 1
    assert "7 missing" in message
    assert "6 unexpected" in message
    assert sum(name in message for name in missing) == 5
    assert sum(f"extra{index}" in message for index in range(6)) == 5
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_file_may_be_given_and_is_named_without_its_folder(
    say: Callable[..., Said], tmp_path: Path
) -> None:
    (tmp_path / "secret").mkdir()
    file = checkpoint(lenet5_state(), tmp_path / "secret" / "mine.safetensors")
    status, out, _ = say("lenet5", *FAST, "--weights", file, "-o", "out", "--json")
    assert status == 0
    assert json.loads(out)["weights"]["detail"] == "mine.safetensors"
    assert "secret" not in out


class Innocent:
    """Says so when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("fooled",)


def test_a_pickled_module_is_refused_and_not_run(say: Callable[..., Said], tmp_path: Path) -> None:
    import torch

    torch.save(Innocent(), tmp_path / "evil.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "module.pth")
    for name in ("evil.pth", "module.pth"):
        status, _, err = say("lenet5", *FAST, "--weights", name, "-o", "out")
        assert status == 1
        assert f"{name}: " in one_line(err)
    assert "expected a state dict, got" in one_line(err)
    assert not (tmp_path / "fooled").exists()
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("cut", [0, 7, 1000, -1])
def test_a_checkpoint_that_was_cut_short_is_refused(say: Callable[..., Said], tmp_path: Path, cut: int) -> None:
    path = NETWORKS["lenet5"].shipped_path
    assert path is not None
    (tmp_path / "w.safetensors").write_bytes(path.read_bytes()[:cut])
    status, _, err = say("lenet5", *FAST, "--weights", "w.safetensors", "-o", "out")
    assert status == 1
    assert "w.safetensors" in one_line(err)
    assert not (tmp_path / "out").exists()


def test_weights_that_are_not_finite_are_refused(say: Callable[..., Said], tmp_path: Path) -> None:
    state = lenet5_state()
    state["f6.bias"] = state["f6.bias"] * float("nan")
    status, _, err = say("lenet5", *FAST, "--weights", checkpoint(state, tmp_path / "w.safetensors"), "-o", "out")
    assert status == 1
    assert "f6.bias" in one_line(err)


@pytest.mark.skipif(importlib.util.find_spec("tensorrt") is not None, reason="tensorrt is installed")
def test_a_compiler_that_is_absent_comes_with_its_pip_line(say: Callable[..., Said], tmp_path: Path) -> None:
    status, out, err = say("lenet5", "--engine", "tensorrt")
    assert (status, out) == (1, "")
    assert 'tensorrt is not installed. pip install "engineworks[tensorrt]"' in one_line(err)
    assert list(tmp_path.iterdir()) == []


def test_fp16_overflow_is_one_line_that_names_the_layer(say: Callable[..., Said], tmp_path: Path) -> None:
    state = lenet5_state()
    state["f6.weight"] = state["f6.weight"] * 1e6
    file = checkpoint(state, tmp_path / "w.safetensors")
    status, _, err = say("lenet5", "--fp16", *FAST, "--weights", file, "-o", "out")
    assert status == 1
    assert "FP16 overflows: f6 (" in one_line(err)
    assert "Use --bf16 or --fp32" in one_line(err)
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize(("name", "value"), [("SOURCE_DATE_EPOCH", "today"), ("ENGINEWORKS_CACHE_BYTES", "lots")])
def test_a_setting_that_is_no_number_is_named(
    say: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, name: str, value: str
) -> None:
    monkeypatch.setenv(name, value)
    status, _, err = say("lenet5", "--engine", "none", "--batch", "2:3:3", "-o", "out")
    assert "Traceback" not in err
    assert f"{name}: expected" in err
    assert status == (1 if name == "SOURCE_DATE_EPOCH" else 0)


# --- interrupted, killed, out of room, in company ---


def reach(process: subprocess.Popen[str], step: str) -> None:
    """Wait until the command has said this step."""
    assert process.stderr is not None
    for line in process.stderr:
        if line.startswith(step):
            return
    raise AssertionError(f"{step} was never said")


@pytest.mark.parametrize("step", ["weights", "onnx-fp32"])
def test_ctrl_c_leaves_nothing_and_exits_130(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, step: str
) -> None:
    process = spawn("lenet5", "--fp16", "--no-cache", "-o", "out")
    reach(process, step)
    process.send_signal(signal.SIGINT)
    status, out, err = finish(process)
    assert (status, out) == (130, "")
    assert one_line(err) == "export-model: interrupted; no half-written bundle was left behind."
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.1, 0.2, 0.4, 0.6])
def test_ctrl_c_at_any_moment_leaves_nothing_or_the_whole_bundle(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, delay: float
) -> None:
    process = spawn("lenet5", "--fp16", "--no-cache", "-o", "out")
    reach(process, "weights")
    time.sleep(delay)
    process.send_signal(signal.SIGINT)
    status, _, _ = finish(process)
    if status == 130:
        assert list(tmp_path.iterdir()) == []
    else:
        runtime.open_bundle(tmp_path / "out").verify()


@pytest.mark.slow
@pytest.mark.parametrize("delay", [0.0, 0.3, 0.6, 0.9, 1.2])
def test_a_kill_leaves_the_old_bundle_or_the_new_one(
    say: Callable[..., Said], spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, delay: float
) -> None:
    assert say("lenet5", *FAST, "-o", "out")[0] == 0
    process = spawn("lenet5", "--fp16", "--no-cache", "--force", "-o", "out")
    reach(process, "weights")
    time.sleep(delay)
    process.kill()
    finish(process)
    bundle = runtime.open_bundle(tmp_path / "out")
    bundle.verify()
    assert bundle.manifest.precision.asked in {"fp32", "fp16"}
    assert say("lenet5", *FAST, "-o", "out", "--force")[0] == 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"], "the next export removes what the kill left"


def small_files_only() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))


def test_a_disk_that_fills_up_leaves_nothing(spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    process = spawn("lenet5", *FAST, "--no-cache", "-o", "out", preexec_fn=small_files_only)
    status, out, err = finish(process)
    assert (status, out) == (1, "")
    assert one_line(err) == "export-model: cannot write out: File too large. Nothing was left behind."
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_keeps_the_old_bundle(
    say: Callable[..., Said], spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    assert say("lenet5", *FAST, "-o", "out")[0] == 0
    before = (tmp_path / "out" / "manifest.json").read_bytes()
    process = spawn("lenet5", *FAST, "--force", "-o", "out", preexec_fn=small_files_only)  # out of the cache
    status, _, err = finish(process)
    assert status == 1
    assert "File too large" in one_line(err)
    assert (tmp_path / "out" / "manifest.json").read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_two_exports_to_one_folder_give_one_bundle(spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    racers = [spawn("lenet5", flag, *FAST, "--no-cache", "-o", "out") for flag in ("--fp32", "--fp16")]
    results = [finish(racer) for racer in racers]
    bundle = runtime.open_bundle(tmp_path / "out")
    bundle.verify()
    winners = [index for index, (status, _, _) in enumerate(results) if status == 0]
    assert len(winners) == 1, results
    assert bundle.manifest.precision.asked == ("fp32", "fp16")[winners[0]]
    status, out, err = results[1 - winners[0]]
    assert (status, out) == (1, "")
    assert "exists" in one_line(err)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out"]


def test_a_reader_that_leaves_is_no_traceback(spawn: Callable[..., subprocess.Popen[str]]) -> None:
    process = spawn("--list")
    assert process.stdout is not None
    process.stdout.close()
    process.wait(60)
    assert process.stderr is not None
    with contextlib.closing(process.stderr):
        assert "Traceback" not in process.stderr.read()


def test_the_installed_command_is_this_one(spawn: Callable[..., subprocess.Popen[str]]) -> None:
    command = Path(sys.executable).parent / "export-model"
    if not command.is_file():
        pytest.skip("the package is not installed")
    status, out, err = finish(spawn("--list", program=[str(command)]))
    assert (status, err) == (0, "")
    assert out.splitlines()[1].split()[0] == next(iter(NETWORKS))


@pytest.mark.slow
@pytest.mark.parametrize("flag", ["--fp16", "--bf16"])
def test_an_untrained_network_says_so_on_every_channel(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path, flag: str
) -> None:
    status, out, err = finish(spawn("resnet18", flag, "--engine", "none", "--batch", "1", "--json", "-o", "out"))
    assert status == 0
    assert "UNTRAINED (seed 0)" in err
    assert json.loads(out)["weights"] == {
        "detail": "seed 0", "licence": None, "origin": "seed", "sha256": None, "trained": False,
    }  # fmt: skip
    inspect = [sys.executable, "-c", "from engineworks.runtime.inspect import run; run()"]
    status, out, _ = finish(spawn(str(tmp_path / "out"), program=inspect))
    assert "UNTRAINED weights: its answers mean nothing" in out


@pytest.mark.parametrize("flag", ["--target", "--weights", "--out"])
def test_an_empty_value_is_wrong_usage_and_not_the_default(say: Callable[..., Said], flag: str) -> None:
    status, out, err = say("lenet5", *FAST, flag, "")
    assert (status, out) == (2, "")
    assert f"{flag} is empty" in err


# --- models of one's own

NET = "import torch\n\n\ndef make(**k): return torch.nn.Linear(6, k.get('classes', 4))\n"
PICTURE = ("--mean", "0.5", "--std", "0.5")


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("net.py",), r"which function makes the network\? Write net\.py:FUNCTION"),
        (("net.py:make()",), "which function"),
        (("timm:",), "which network of timm"),
        (("best.pth",), "holds weights and no network. Name the network, with --weights best.pth"),
        (("net.py:make", "--shape", "6", "--trust"), r"--trust is for \.pt2 files alone"),
        (("net.py:make", "--shape", "six"), r"--shape: expected \[NAME:\]SIZES"),
        (("net.py:make", "--shape", "6:float16"), "--shape: expected a dtype of float32"),
        (("net.py:make", "--shape", "0"), "--shape: expected sizes of 1 or more"),
        (("net.py:make", "--shape", ""), "--shape"),
        (("net.py:make", "--shape", "6", "--model-arg", "classes"), "--model-arg: expected KEY=VALUE"),
        (("net.py:make", "--shape", "6", "--model-arg", "a=1", "--model-arg", "a=2"), "--model-arg a is given twice"),
        (("net.py:make", "--shape", "6", "--mean", "0.5"), "--mean and --std belong together"),
        (("net.py:make", "--shape", "6", "--mean", "0.5,0.5", "--std", "1"), "expected one number or three"),
        (("net.py:make", "--shape", "6", "--mean", "x", "--std", "1"), "--mean"),
        (("net.py:make", "--shape", "6", "--mean", "0", "--std", "0"), "--std: expected numbers other than 0"),
        (("net.py:make", "--shape", "6", "--mean", "0", "--std", "1e-300"), "--std: expected numbers other than 0"),
        (("net.py:make", "--shape", "6", "--mean", "1e308", "--std", "1"), "--mean: expected numbers of at most 1e6"),
        (("net.py:make", "--shape", "6", "--input", "uint8"), "need --mean and --std for this model"),
        (("net.py:make", "--shape", "6", "--resize", "5"), "need --mean and --std for this model"),
        (("lenet5", "--resize", "big"), "--resize: expected a number of pixels, or HEIGHTxWIDTH"),
        (("lenet5", "--interpolation", "area"), "--interpolation"),
        (("lenet5", "--input", "int8"), "--input"),
        (("lenet5", "--labels", ""), "--labels is empty"),
        (("lenet5", "--samples", ""), "--samples is empty"),
        (("net.py:make", "--shape", "6", "--weights", "imagenet"), "none were published for a network of your own"),
        (("net.onnx", "--weights", "w.pth"), r"--weights and net\.onnx contradict each other"),
        (("net.onnx", "--route", "fx"), "--route fx"),
        (("net.pt2", "--trust", "--model-arg", "a=1"), r"--model-arg and net\.pt2 contradict each other"),
    ],
)  # fmt: skip
def test_wrong_use_of_the_flags_for_ones_own_models_exits_2_before_any_code_runs(
    say: Callable[..., Said], arguments: tuple[str, ...], why: str
) -> None:
    import re

    Path("net.py").write_text("raise SystemExit('it was run')")
    status, out, err = say(*arguments)
    assert (status, out) == (2, "")
    assert re.search(why, " ".join(err.split()))
    assert "Traceback" not in err
    assert [entry.name for entry in Path().iterdir()] == ["net.py"]


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("net.py:make",), "which input does it take? Add --shape"),
        (("none.py:make", "--shape", "6"), "none.py: there is no such file."),
        (("net.py:other", "--shape", "6"), "there is no 'other' in it. It offers: make."),
        (("net.py:torch", "--shape", "6"), "expected a function or class that makes a torch.nn.Module, got a module"),
        (("no.such:make", "--shape", "6"), "No module named 'no'"),
        (
            ("net.py:make", "--shape", "5"),
            "raises RuntimeError at a batch of 3: mat1 and mat2 shapes cannot be multiplied",
        ),
        (("net.py:make", "--shape", "6:int64"), "raises RuntimeError"),
        (("net.py:make", "--shape", "other:6"), "--shape: forward takes input; got other."),
        (("net.py:make", "--shape", "6", "--model-arg", "classes=many"), "net.py:make raises TypeError"),
        (("net.py:make", "--shape", "6", "--weights", "none.pth"), "--weights none.pth: there is no such file"),
        (("net.py:make", "--shape", "6", "--labels", "none.txt"), "--labels none.txt: there is no such file"),
        (("net.py:make", "--shape", "6", "--labels", "net.py"), "--labels net.py: expected a name in every line"),
        (("net.py:make", "--shape", "6", "--samples", "net.py"), "--samples net.py: expected a .npz of arrays"),
        (("net.py:make", "--shape", "6", *PICTURE), "--mean: expected one float32 picture of 1 or 3 channels"),
        (("none.onnx",), "none.onnx: there is no such file."),
        (("none.pt2", "--trust"), "none.pt2: there is no such file."),
        ((":make",), "no network is called ':make'"),
        (("lenet5", "--shape", "3x32x32"), "--shape: lenet5 takes 1 channels, got 3."),
        (("lenet5", "--shape", "1x4x4"), "Kernel size can't be greater than actual input size"),
        (("lenet5", "--model-arg", "colour=red"), "--model-arg colour: lenet5 does not take that"),
        (("lenet5", "--mean", "1,2,3", "--std", "1,1,1"), "--mean: the network takes 1 channels, got 3 numbers."),
    ],
)
def test_a_model_of_ones_own_that_fails_is_one_line_and_leaves_nothing(
    say: Callable[..., Said], arguments: tuple[str, ...], why: str
) -> None:
    Path("net.py").write_text(NET)
    status, out, err = say(*arguments, *FAST, "-q")
    assert (status, out) == (1, "")
    assert why in one_line(err)
    assert len([line for line in err.splitlines() if not line.startswith("weights")]) == 1
    assert [entry.name for entry in Path().iterdir()] == ["net.py"]


def test_a_factory_is_exported_from_flags_alone(say: Callable[..., Said]) -> None:
    Path("net.py").write_text(NET)
    flags = ("--shape", "6", "--model-arg", "classes=7", "--fp16")
    status, out, err = say("net.py:make", *flags, *FAST)
    assert (status, out) == (0, "net-make-fp16\n")
    assert "ran net.py:make; not cached" in err
    assert "no --mean and --std: the bundle takes prepared arrays, and classifies no pictures" in err
    manifest = runtime.open_bundle("net-make-fp16").manifest
    assert manifest.outputs[0].shape == ("batch", 7)
    assert manifest.recipe["model_args"] == {"classes": "7"}


def test_stdout_holds_the_path_alone_whatever_the_users_code_prints(
    spawn: Callable[..., subprocess.Popen[str]], tmp_path: Path
) -> None:
    """Prints, writes to the descriptor itself, and what a process of its own says."""
    code = "import os, sys\nprint('a')\nsys.stdout.write('b\\n')\nos.write(1, b'c\\n')\nos.system('echo d')\n"
    (tmp_path / "net.py").write_text(code + NET)
    status, out, err = finish(spawn("net.py:make", "--shape", "6", *FAST, "-q"))
    assert (status, out) == (0, "net-make-fp32\n")
    assert sorted(err.split()) == ["a", "b", "c", "d"]
