"""deploy-model writes whole targets or none, replaces nothing unasked, and refuses options that mean nothing."""

import re
from pathlib import Path

import pytest

from engineworks.runtime.deploy import main

Capture = pytest.CaptureFixture[str]


def tree(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_paths_go_to_stdout_and_what_is_lost_to_stderr(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    repository, file = tmp_path / "repo", tmp_path / "k.yaml"
    assert main([str(bundle), "--triton", str(repository), "--kserve", str(file), "--storage", "s3://a"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{repository / 'four-fp16'}\n{file}\n"
    assert "deploy-model: Triton prepares no pictures" in told.err
    assert sorted(tree(repository)) == [f"four-fp16/{name}" for name in ("1/model.onnx", "config.pbtxt", "labels.txt")]


def test_the_second_time_it_is_refused_and_with_force_the_same_again(
    bundle: Path, tmp_path: Path, capsys: Capture
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    command = [str(bundle), "--triton", str(out), "--kserve", str(out / "k.yaml"), "--storage", "s3://a"]
    assert main(command) == 0
    first = tree(out)
    assert main(command) == 1
    assert re.search(r"deploy-model: \S+ exists\. Pass --force[^\n]*\n$", capsys.readouterr().err)
    assert main([*command, "--force"]) == 0
    assert tree(out) == first


def test_ray_takes_gpus_and_replicas_too(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    file = tmp_path / "ray.yaml"
    assert main([str(bundle), "--ray", str(file), "--gpus", "0", "--replicas", "2:3", "--host", "::1"]) == 0
    told = capsys.readouterr()
    assert told.out == f"{file}\n"
    assert "deploy-model: every node must find the bundle" in told.err
    assert "num_gpus: 0" in file.read_text("utf-8")


def test_nothing_is_written_where_one_target_is_refused(bundle: Path, tmp_path: Path) -> None:
    file, repository = tmp_path / "k.yaml", tmp_path / "repo"
    file.write_text("mine")
    assert main([str(bundle), "--triton", str(repository), "--kserve", str(file), "--storage", "s3://a"]) == 1
    assert not repository.exists()
    assert file.read_text() == "mine"


def test_force_replaces_no_folder_that_is_not_tritons(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    folder = tmp_path / "repo" / "four-fp16"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").write_text("mine")
    assert main([str(bundle), "--triton", str(folder.parent), "--force"]) == 1
    assert "holds something other than a Triton model" in capsys.readouterr().err
    assert tree(folder) == {"thesis.txt": b"mine"}


@pytest.mark.parametrize("flags", [[], ["--force"]])
def test_a_folder_in_a_files_place_is_left(bundle: Path, tmp_path: Path, flags: list[str]) -> None:
    (tmp_path / "k").mkdir()
    assert main([str(bundle), "--kserve", str(tmp_path / "k"), "--storage", "s3://a", *flags]) == 1


def test_a_folder_that_does_not_exist_is_named(bundle: Path, tmp_path: Path, capsys: Capture) -> None:
    assert main([str(bundle), "--kserve", str(tmp_path / "no" / "k"), "--storage", "s3://a"]) == 1
    assert "does not exist. Make it first." in capsys.readouterr().err


def test_what_is_no_bundle_is_one_line_and_status_1(tmp_path: Path, capsys: Capture) -> None:
    assert main([str(tmp_path), "--triton", str(tmp_path / "repo")]) == 1
    assert re.fullmatch(r"deploy-model: [^\n]+\n", capsys.readouterr().err)


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        ([], "expected --triton DIR, --kserve FILE or --ray FILE"),
        (["--kserve", "k"], "--kserve needs --storage URI"),
        (["--kserve", "k", "--storage", "s3://a", "--backend", "auto"], "--backend means something with --triton only"),
        (["--triton", "t", "--gpus", "1"], "--gpus means something with --kserve or --ray only"),
        (["--kserve", "k", "--storage", "s3://a", "--host", "::"], "--host means something with --ray only"),
        (["--triton", "t", "--backend", "onnxruntime", "--target", "sm_90"], "--target names an engine"),
        (["--kserve", "k", "--storage", "s3://a", "--replicas", "4"], "expected MIN:MAX"),
        (["--kserve", "k", "--storage", "s3://a", "--replicas", "4:2"], "expected MIN:MAX"),
        (["--kserve", "k", "--storage", "s3://a", "--gpus", "-1"], "--gpus"),
    ],
)
def test_options_that_contradict_are_wrong_usage(bundle: Path, capsys: Capture, arguments: list[str], why: str) -> None:
    assert main([str(bundle), *arguments]) == 2
    assert why in capsys.readouterr().err
