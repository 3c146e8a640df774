"""The user's own line: found in tracebacks, stacks, programs and logs; never a folder of the machine."""

import importlib.util
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from engineworks.export.blame import at, guards, is_users, line_at, node_line, running_line, user_line

CODE = """\
import json
import torch

def branch(x):
    return x * 2 if x.shape[0] > 4 else x

def fixed(x):
    y = x + 1
    return y.view(2, -1)

class Drawn(torch.nn.Module):
    def forward(self, x):
        return x + torch.rand(1)

def parse(text):
    return json.loads(text)

def again(text):
    try:
        parse(text)
    except ValueError as error:
        raise RuntimeError("not there") from error

def call(function):
    return function()
"""


@pytest.fixture
def code(tmp_path: Path) -> Any:
    """A user's module, imported from a file."""
    file = tmp_path / "mycode.py"
    file.write_text(CODE, "utf-8")
    spec = importlib.util.spec_from_file_location("mycode", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_innermost_line_that_is_the_users_is_named_without_its_folder(code: Any) -> None:
    with pytest.raises(ValueError) as caught:
        code.parse("{")
    assert user_line(caught.value) == "mycode.py:16, in parse: return json.loads(text)"


def test_an_error_without_a_frame_of_the_users_is_followed_to_its_cause(code: Any) -> None:
    with pytest.raises(RuntimeError) as caught:
        code.again("{")
    cause = caught.value.__cause__
    bare = RuntimeError("from elsewhere")
    bare.__cause__ = cause
    assert user_line(bare) == "mycode.py:16, in parse: return json.loads(text)"
    assert user_line(caught.value) == 'mycode.py:22, in again: raise RuntimeError("not there") from error'


def test_errors_that_cause_each_other_end() -> None:
    one, other = ValueError(), ValueError()
    one.__cause__, other.__cause__ = other, one
    assert user_line(one) is None


def test_torch_python_and_engineworks_are_not_the_users(code: Any) -> None:
    assert is_users(code.__file__)
    for file in (torch.__file__, logging.__file__, line_at.__code__.co_filename, "<string>"):
        assert not is_users(file), file


def test_the_line_that_is_running_is_found_from_below(code: Any) -> None:
    assert code.call(running_line) == "mycode.py:25, in call: return function()"


def test_a_long_line_is_cut_and_no_line_is_no_words(tmp_path: Path) -> None:
    file = tmp_path / "long.py"
    file.write_text("x = " + "1 + " * 40 + "1\n", "utf-8")
    line = line_at(str(file), 1, "f")
    assert line.startswith("long.py:1, in f: x = 1 + 1") and line.endswith("…") and len(line) < 100
    assert line_at("gone.py", 3, "f") == "gone.py:3, in f"
    assert (at(None), at("a.py:1, in f")) == ("", " At a.py:1, in f")


def wrapped(run: Any) -> torch.nn.Module:
    module = torch.nn.Module()
    module.forward = run
    return module.eval()


def export(run: Any) -> Any:
    batch = torch.export.Dim("batch", min=1, max=8)
    x = torch.randn(2, 4)
    return torch.export.export(wrapped(run), (x,), dynamic_shapes=({0: batch},), strict=False)


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("branch", "mycode.py:5, in branch: return x * 2 if x.shape[0] > 4 else x"),
        ("fixed", "mycode.py:9, in fixed: return y.view(2, -1)"),
    ],
)
def test_the_line_that_narrows_a_free_size_is_noted(code: Any, name: str, line: str) -> None:
    logger = logging.getLogger("torch.fx.experimental.symbolic_shapes")
    before = logger.level, logger.propagate, list(logger.handlers)
    with pytest.raises(Exception, match="Constraints violated"), guards() as found:
        export(getattr(code, name))
    assert found.line == line
    assert (logger.level, logger.propagate, list(logger.handlers)) == before


def test_a_node_of_a_program_knows_its_line(code: Any) -> None:
    program = torch.export.export(code.Drawn().eval(), (torch.ones(2, 4),), strict=False)
    lines = {node.name: node_line(node) for node in program.graph.nodes}
    assert lines["rand"] == "mycode.py:13, in forward: return x + torch.rand(1)"
    assert lines["output"] is None
