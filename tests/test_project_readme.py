"""The README's Python is run, from a folder laid out as after ``make demo``."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"^```python\n(.*?)^```", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)


@pytest.fixture
def after_the_demo(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "tests" / "data" / "lenet5-fp16", tmp_path / "demo" / "lenet5-fp16")
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path


def run(folder: Path, *arguments: str) -> str:
    command = [sys.executable, "-W", "error", *arguments]
    return subprocess.run(command, cwd=folder, check=True, capture_output=True, text=True).stdout


def test_the_readme_shows_python() -> None:
    assert BLOCKS


@pytest.mark.parametrize("block", BLOCKS)
def test_the_readmes_python_runs_and_reads_the_seven(after_the_demo: Path, block: str) -> None:
    assert "Prediction(label='7'" in run(after_the_demo, "-c", block)


def test_the_example_reads_the_digits_it_is_given(after_the_demo: Path) -> None:
    digits = str(ROOT / "models" / "digits.npz")
    assert "195 of 200 digits read right (97.5%)" in run(
        after_the_demo, "examples/digits.py", "demo/lenet5-fp16", digits
    )


def test_the_example_names_a_picture(after_the_demo: Path) -> None:
    out = run(after_the_demo, "examples/classify.py", "demo/lenet5-fp16", "examples/seven.png")
    assert re.search(r"examples/seven\.png\n +\d+\.\d%  7\n", out)
    assert "untrained" not in out


def test_the_readmes_int8_line_gives_a_bundle_that_reads_the_digits(after_the_demo: Path) -> None:
    line = re.search(r"^\$ export-model (lenet5 --int8 .*)$", (ROOT / "README.md").read_text("utf-8"), re.MULTILINE)
    assert line is not None
    code = "import sys; from engineworks.export.cli import main; sys.exit(main(sys.argv[1:]))"
    flags = [*line[1].split(), "--engine", "none", "--no-cache", "--batch", "1:2:4", "-q"]
    assert run(after_the_demo, "-c", code, *flags) == "lenet5-int8\n"
    digits = str(ROOT / "models" / "digits.npz")
    assert "195 of 200 digits read right (97.5%)" in run(after_the_demo, "examples/digits.py", "lenet5-int8", digits)
