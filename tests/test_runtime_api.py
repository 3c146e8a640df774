"""The public surface: what importing costs, that torch never comes, and that every name says what it is."""

import inspect
import json
import re
import shutil
import subprocess
import sys
import textwrap
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from engineworks import runtime

HEAVY = ["torch", "onnx", "onnxruntime", "PIL", "click", "tensorrt", "tensorrt_rtx", "ml_dtypes"]
OTHERS = ["engineworks.export", "engineworks.models", "engineworks.calibration"]


def loaded(script: str, *arguments: str) -> list[str]:
    """Which of the heavy packages, and of our other folders, a fresh process has imported after the script."""
    ending = "\nimport json, sys; print(json.dumps(sorted(sys.modules)))"
    answer = subprocess.run(
        [sys.executable, "-W", "error", "-c", script + ending, *arguments], check=True, capture_output=True, text=True
    )
    modules = json.loads(answer.stdout.splitlines()[-1])
    return [name for name in (*HEAVY, *OTHERS) if name in modules]


def test_importing_loads_not_even_numpy() -> None:
    assert loaded("import engineworks.runtime, sys; assert 'numpy' not in sys.modules") == []


def test_every_name_loads_from_a_fresh_process_whatever_was_loaded_before_it() -> None:
    script = (
        "import sys; from engineworks import runtime\n"
        "first = {name: getattr(runtime, name) for name in reversed(runtime.__all__)}\n"
        "assert all(getattr(runtime, name) is first[name] for name in runtime.__all__)\n"
        "assert all(callable(value) for value in first.values()), first\n"
        "assert set(runtime.__all__) <= set(dir(runtime))"
    )
    assert loaded(script) == []


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match=r"module 'engineworks\.runtime' has no attribute 'lod'"):
        _ = runtime.lod


def test_opening_and_verifying_a_bundle_loads_nothing_more(bundle: Path) -> None:
    assert (
        loaded("import sys; from engineworks import runtime; runtime.open_bundle(sys.argv[1]).verify()", str(bundle))
        == []
    )


def test_running_arrays_loads_onnxruntime_and_no_more(bundle: Path) -> None:
    script = (
        "import sys, numpy as np; from engineworks import runtime\n"
        "with runtime.load(sys.argv[1]) as model: model.infer(np.zeros((1, 3, 8, 8), np.float32))"
    )
    assert loaded(script, str(bundle)) == ["onnxruntime"]


def test_running_pictures_loads_pillow_too_and_no_more(bundle: Path) -> None:
    script = (
        "import sys, numpy as np; from engineworks import runtime\n"
        "with runtime.load(sys.argv[1]) as model: model.classify(np.zeros((9, 9, 3), np.uint8))"
    )
    assert loaded(script, str(bundle)) == ["onnxruntime", "PIL"]


def test_inspecting_loads_click_and_no_more(bundle: Path) -> None:
    script = "import sys; from engineworks.runtime.inspect import main; main([sys.argv[1]])"
    assert loaded(script, str(bundle)) == ["click"]


def test_the_public_names_are_sorted_and_all_there() -> None:
    assert runtime.__all__ == sorted(runtime.__all__)
    assert [name for name in runtime.__all__ if not hasattr(runtime, name)] == []


def described(thing: Any) -> list[tuple[str, Any]]:
    """A class with its public methods, or a function."""
    found = [(thing.__name__, thing)]
    if inspect.isclass(thing):
        for name, member in vars(thing).items():
            function = member.fget if isinstance(member, property) else getattr(member, "__func__", member)
            if not name.startswith("_") and inspect.isfunction(function):
                found.append((f"{thing.__name__}.{name}", function))
    return found


@pytest.mark.parametrize("name", runtime.__all__)
def test_every_public_name_begins_with_a_sentence_on_one_line(name: str) -> None:
    bad = []
    for title, thing in described(getattr(runtime, name)):
        first = (thing.__doc__ or "").splitlines()[:1]
        if not first or len(first[0]) < 20 or first[0].startswith(f"{name}("):  # a dataclass without words
            bad.append((title, first))
    assert bad == []


@pytest.mark.parametrize("name", [name for name in runtime.__all__ if inspect.isfunction(getattr(runtime, name))])
def test_every_argument_of_a_public_function_is_documented(name: str) -> None:
    function = getattr(runtime, name)
    text = function.__doc__
    arguments = [argument for argument in inspect.signature(function).parameters if f"{argument}:" not in text]
    assert name == "open_bundle" or arguments == []  # its one argument stands in its first sentence


@pytest.mark.parametrize("name", [name for name in runtime.__all__ if is_dataclass(getattr(runtime, name))])
def test_every_value_is_frozen(name: str) -> None:
    kind = getattr(runtime, name)
    assert kind.__dataclass_params__.frozen
    assert fields(kind)


@pytest.mark.parametrize("name", [name for name in runtime.__all__ if name.endswith("Error")])
def test_every_error_is_one_of_ours(name: str) -> None:
    assert issubclass(getattr(runtime, name), runtime.EngineworksError)


EXAMPLES = re.findall(r"(?:^    .*\n|^\n)+", f"{runtime.__doc__}\n", re.MULTILINE)
EXAMPLES = [textwrap.dedent(example) for example in EXAMPLES if "import" in example]


def test_the_package_shows_examples() -> None:
    assert len(EXAMPLES) == 3


@pytest.mark.parametrize("example", EXAMPLES)
def test_every_example_in_the_packages_words_runs(example: str, tmp_path: Path) -> None:
    root = Path(__file__).parent.parent
    shutil.copytree(root / "tests" / "data" / "lenet5-fp16", tmp_path / "demo" / "lenet5-fp16")
    (tmp_path / "examples").mkdir()
    Image.fromarray(np.full((28, 28), 200, np.uint8)).save(tmp_path / "examples" / "seven.png")
    command = [sys.executable, "-W", "error", "-c", example]
    assert subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
