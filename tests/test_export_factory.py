"""Networks of the user's own: built as asked, their code kept apart, their failures one line, never cached."""

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from engineworks import runtime
from engineworks.export import factory
from engineworks.export.cli import main
from engineworks.export.inputs import parse_shape
from engineworks.export.pipeline import export_model
from engineworks.export.recipe import Recipe
from engineworks.models.errors import WeightsError
from engineworks.runtime.errors import ExportError
from engineworks.runtime.manifest import Batch

Write = Callable[..., Recipe]
NET = """
import torch
from torch import nn


class Tiny(nn.Module):
    def __init__(self, classes=4):
        super().__init__()
        self.f = nn.Linear(6, classes)

    def forward(self, x):
        return torch.relu(self.f(x))
"""


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Work in an empty folder with a cache beside it; forget the modules that a test loaded."""
    monkeypatch.setenv("ENGINEWORKS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    before = set(sys.modules)
    yield
    for name in set(sys.modules) - before:
        if name.startswith("engineworks_own"):
            del sys.modules[name]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a Python file, and return the recipe that takes ``make`` out of it."""

    def written(code: str, name: str = "net.py", take: str = "make", **fields: Any) -> Recipe:
        file = Path(name)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(NET + code, "utf-8")
        usual: dict[str, Any] = {"shapes": (parse_shape("6"),), "engine": "none", "batch": Batch(1, 2, 3)}
        return Recipe(f"{file}:{take}", **(usual | fields))

    return written


def refused(recipe: Recipe) -> str:
    with pytest.raises(ExportError) as caught:
        factory.factory_source(recipe)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- what is taken


@pytest.mark.parametrize(
    ("code", "take"),
    [
        ("def make(): return Tiny()", "make"),
        ("make = lambda: Tiny()", "make"),
        ("", "Tiny"),
        ("module = Tiny()", "module"),
        ("class A:\n    class B:\n        make = staticmethod(lambda: Tiny())", "A.B.make"),
        ("class A:\n    @classmethod\n    def make(cls): return Tiny()", "A.make"),
        ("import functools\nmake = functools.partial(Tiny, classes=5)", "make"),
        ("class A:\n    def __call__(self): return Tiny()\nmake = A()", "make"),
    ],
)
def test_whatever_makes_a_module_is_a_factory(write: Write, code: str, take: str) -> None:
    module = factory.build(write(code, take=take))
    assert type(module).__name__ == "Tiny"
    assert not any(part.training for part in module.modules())
    assert not any(parameter.requires_grad for parameter in module.parameters())


def test_the_same_weights_come_every_time_and_the_users_random_state_is_left_alone(write: Write) -> None:
    recipe = write("def make(): return Tiny()")
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, second = factory.build(recipe), factory.build(recipe)
    assert torch.equal(first.state_dict()["f.weight"], second.state_dict()["f.weight"])
    assert torch.equal(torch.rand(1), expected)


def test_arguments_reach_the_factory(write: Write) -> None:
    module = factory.build(write("def make(**k): return Tiny(**k)", model_args=(("classes", 9),)))
    assert module.get_parameter("f.bias").shape == (9,)


def test_inputs_and_outputs_of_every_kind_go_through_the_whole_way(write: Write, tmp_path: Path) -> None:
    recipe = write(
        """
class Net(Tiny):
    def forward(self, x, shift):
        y = super().forward(x) + shift
        return {"scores": y, "parts": (y * 2, [y - 1])}
""",
        take="Net",
        shapes=(parse_shape("shift:4"), parse_shape("x:6")),
    )
    bundle = export_model(recipe, tmp_path / "out")
    assert [str(tensor.name) for tensor in bundle.manifest.inputs] == ["x", "shift"]
    assert [tensor.name for tensor in bundle.manifest.outputs] == ["scores", "parts_0", "parts_1_0"]
    module = factory.build(recipe)
    x, shift = np.ones((3, 6), np.float32), np.arange(12, dtype=np.float32).reshape(3, 4)
    with runtime.load(bundle.path, device="cpu") as session, torch.no_grad():
        found = session.infer({"x": x, "shift": shift})
        expected = module(torch.from_numpy(x), torch.from_numpy(shift))["scores"].numpy()
    assert np.allclose(found["scores"], expected, atol=1e-5)  # a sum of six float32 products near 1
    assert np.array_equal(found["parts_0"], found["scores"] * 2)


@pytest.mark.parametrize("forward", ["return f, x", "return x", "return f, f"])
def test_inputs_and_values_that_are_returned_as_they_are(write: Write, tmp_path: Path, forward: str) -> None:
    code = f"class Net(Tiny):\n    def forward(self, x):\n        f = super().forward(x)\n        {forward}"
    bundle = export_model(write(code, take="Net"), tmp_path / "out")
    x = np.arange(12, dtype=np.float32).reshape(2, 6)
    with runtime.load(bundle.path, device="cpu") as session:
        found = session.infer({"input": x})
    if forward.endswith("x"):
        assert np.array_equal(found[bundle.manifest.outputs[-1].name], x)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("code", "shapes"),
    [
        ("class Net(Tiny):\n    def forward(self, x): return super().forward(x), None", ("6",)),
        ("class Net(Tiny):\n    def forward(self, x): y = super().forward(x); return y, y.argmax(1)", ("6",)),
        ("class Net(Tiny):\n    def forward(self, x): return super().forward(x) > 0.1", ("6",)),
        ("class Net(Tiny):\n    def forward(self, x, m): return super().forward(x) * m", ("x:6", "m:4:bool")),
        ("class Net(Tiny):\n    def forward(self, x, m=None): return super().forward(x)", ("x:6",)),
        ("class Net(Tiny):\n    def forward(self, x, *, k=2.0): return super().forward(x) * k", ("x:6",)),
        ("class Net(nn.Module):\n    def __init__(s):\n        super().__init__(); s.e = nn.Embedding(10, 5)\n"
         "    def forward(s, ids): return s.e(ids).mean(1)", ("ids:7:int64",)),
        ("class Net(nn.Module):\n    def __init__(s):\n        super().__init__(); s.c = nn.Conv2d(3, 4, 3)\n"
         "    def forward(s, x): return s.c(x.permute(0, 3, 1, 2).float().contiguous() / 255).mean((2, 3))",
         ("x:8x8x3:uint8",)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_dtypes_and_signatures_that_take_the_long_way(
    write: Write, tmp_path: Path, code: str, shapes: tuple[str, ...], precision: Any
) -> None:
    recipe = write(code, take="Net", precision=precision, shapes=tuple(map(parse_shape, shapes)))
    export_model(recipe, tmp_path / "out").verify()


# --- what is refused


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ('def make(): raise ValueError("first\\nsecond")', "net.py:make raises ValueError: first"),
        ("def make(): raise SystemExit(3)", "net.py:make raises SystemExit: 3"),
        ("def make(): raise SystemExit", "net.py:make raises SystemExit"),
        ("def make(): raise GeneratorExit", "net.py:make raises GeneratorExit"),
        ("def make(need): return Tiny()", "missing 1 required positional argument: 'need'"),
        ("def make(): return None", "net.py:make: expected a torch.nn.Module, got a NoneType."),
        ("def make(): return Tiny", "expected a torch.nn.Module, got a class."),
        ("def make(): return Tiny(), 3", "expected a torch.nn.Module, got a tuple."),
        ("def make(): return Tiny().state_dict()", "expected a torch.nn.Module, got a OrderedDict."),
        ("make = 3", "expected a function or class that makes a torch.nn.Module, got a int."),
        ("def make(): return Tiny().double()", "expected float32 weights, f.weight is torch.float64"),
        ("def make(): return Tiny().half()", "f.weight is torch.float16. Return it with .float()."),
        ("def make(): return Tiny().bfloat16()", "f.weight is torch.bfloat16"),
        ("class A(Tiny):\n    def __init__(self):\n        super().__init__()\n"
         "        self.register_buffer('b', torch.zeros(1, dtype=torch.cfloat))\nmake = A", "b is torch.complex64"),
        ("def make(): return nn.Sequential(nn.LazyLinear(4))", "0.weight has no size yet (a lazy layer)"),
        ("def make():\n    with torch.device('meta'): return Tiny()", "f.weight has no values (device meta)"),
        ("class A(Tiny):\n    def train(self, mode=True): return super().train(True)\nmake = A",
         "the module itself stays in training mode after .eval()"),
        ("class A(Tiny):\n    def train(self, mode=True): raise RuntimeError('no')\nmake = A",
         "net.py:make raises RuntimeError: no"),
        ("class A(Tiny):\n    def forward(self, *xs): return xs[0]\nmake = A", "A.forward names no input"),
        ("raise SystemExit(0)", "net.py:make raises SystemExit: 0"),
        ("import no_such_thing", "No module named 'no_such_thing'. If it lies beside net.py, set PYTHONPATH"),
        ("from . import sibling", "raises ImportError"),
        ("def make(:", "raises SyntaxError"),
        ("other = 1", "there is no 'make' in it. It offers: Tiny."),
    ],
)  # fmt: skip
def test_what_is_no_network_is_refused_by_its_cause(write: Write, code: str, message: str) -> None:
    assert message in refused(write(code))


@pytest.mark.slow
@pytest.mark.parametrize(
    "code", ["torch.jit.script(Tiny())", "torch.jit.trace(Tiny().eval(), torch.zeros(1, 6))", "torch.compile(Tiny())"]
)
@pytest.mark.filterwarnings("ignore")  # torch's, of TorchScript's end
def test_what_is_compiled_already_is_refused(write: Write, code: str) -> None:
    assert "is compiled (torch.jit or torch.compile)" in refused(write(f"def make(): return {code}"))


def test_a_long_list_of_what_is_offered_is_cut(write: Write) -> None:
    message = refused(write("\n".join(f"def f{number}(): pass" for number in range(50)), take="nothing"))
    assert "f8, …" in message
    assert "f20" not in message


def test_no_shape_and_no_file_are_said_before_any_code_runs(write: Write) -> None:
    assert "Add --shape, such as --shape 3x224x224" in refused(write("raise ValueError", shapes=()))
    recipe = write("def make(): return Tiny()")
    Path("net.py").unlink()
    assert refused(recipe) == "net.py: there is no such file."
    Path("net.py").mkdir()
    assert refused(recipe) == "net.py: there is no such file."


def test_a_module_takes_no_arguments(write: Write) -> None:
    assert "takes no arguments" in refused(write("make = Tiny()", model_args=(("a", 1),)))


def test_ctrl_c_in_the_factory_is_ctrl_c(write: Write) -> None:
    with pytest.raises(KeyboardInterrupt):
        factory.build(write("def make(): raise KeyboardInterrupt"))


def test_a_network_that_draws_random_numbers_is_told_so_and_not_to_fix_its_batch(write: Write, tmp_path: Path) -> None:
    code = "class Net(Tiny):\n    def forward(self, x): return super().forward(x) + torch.rand(len(x), 4)"
    with pytest.raises(ExportError, match="otherwise from call to call: random numbers"):
        export_model(write(code, take="Net"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


# --- the user's files stay the user's


@pytest.mark.parametrize("name", ["random.py", "types.py", "torch.py", "numpy.py", "colorsys.py", "onnxslim.py"])
def test_a_file_that_is_called_like_a_module_does_not_stand_in_for_it(write: Write, name: str) -> None:
    factory.build(write("def make(): return Tiny()", name=name))
    found = importlib.import_module(Path(name).stem)
    assert str(found.__file__) != str(Path(name).resolve())
    assert not hasattr(found, "Tiny")


def test_two_files_of_one_name_are_two_files(write: Write) -> None:
    for name, classes in (("a/same.py", 5), ("b/same.py", 6), ("a/same.py", 7)):
        module = factory.build(write(f"def make(): return Tiny({classes})", name=name))
        assert module.get_parameter("f.bias").shape == (classes,)


def test_a_file_that_was_changed_is_read_again_and_leaves_nothing_beside_it(write: Write) -> None:
    for classes in (4, 5, 6):  # the same size, within one second: Python's own cache would take the first
        recipe = write(f"def make(): return Tiny({classes})", name="lib/net.py")
        os.utime("lib/net.py", (1e9, 1e9))
        assert factory.build(recipe).get_parameter("f.bias").shape == (classes,)
    assert [entry.name for entry in Path("lib").iterdir()] == ["net.py"]


def test_a_file_may_lie_anywhere_and_be_called_anything(write: Write) -> None:
    for name in ("my net.py", "ünï/1-ñet.py", "a.b.py", str(Path("abs.py").resolve())):
        factory.build(write("def make(): return Tiny()", name=name))


def test_a_file_finds_itself_and_its_dataclasses(write: Write) -> None:
    code = """
import dataclasses, inspect, pathlib, typing

@dataclasses.dataclass
class Config:
    classes: "int" = 4
    kind: typing.ClassVar[int] = 3

def make():
    assert pathlib.Path(__file__).name == "net.py"
    assert "Config" in inspect.getsource(Config)
    typing.get_type_hints(Config)
    return Tiny(Config().classes)
"""
    factory.build(write(code))


def test_a_sibling_is_found_only_where_the_user_says_so(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("lib").mkdir()
    Path("lib/own_sibling.py").write_text("CLASSES = 7")
    recipe = write("from own_sibling import CLASSES\ndef make(): return Tiny(CLASSES)", name="lib/net.py")
    assert "No module named 'own_sibling'" in refused(recipe)
    monkeypatch.syspath_prepend("lib")
    assert factory.build(recipe).get_parameter("f.bias").shape == (7,)


def test_a_module_is_imported_by_its_name() -> None:
    recipe = Recipe("torch.nn:Linear", shapes=(parse_shape("3"),), model_args=(("in_features", 3), ("out_features", 2)))
    assert isinstance(factory.build(recipe), nn.Linear)
    assert "No module named 'no'" in refused(Recipe("no.such:make", shapes=(parse_shape("3"),)))
    assert "there is no 'Nope' in it" in refused(Recipe("torch.nn:Nope", shapes=(parse_shape("3"),)))


def test_what_the_users_code_prints_goes_to_stderr(write: Write, capfd: pytest.CaptureFixture[str]) -> None:
    code = "print('at import')\ndef make():\n    print('in make')\n    return Tiny()"
    code += "\nclass Net(Tiny):\n    def forward(self, x):\n        print('in forward'); return super().forward(x)"
    write(code)
    status = main(["net.py:make", "--shape", "6", "--engine", "none", "--batch", "1:2:3", "-q"])
    out, err = capfd.readouterr()
    assert (status, out) == (0, "net-make-fp32\n")
    assert err == "at import\nin make\n"


def test_weights_of_a_file_are_put_in_and_named_without_their_folder(write: Write, tmp_path: Path) -> None:
    from safetensors.torch import save_file

    (tmp_path / "secret").mkdir()
    file = tmp_path / "secret" / "w.safetensors"
    state = {"f.weight": torch.eye(4, 6), "f.bias": torch.ones(4)}
    save_file(state, file)
    recipe = write("def make(): return Tiny()", weights=str(file))
    bundle = export_model(recipe, tmp_path / "out")
    with runtime.load(bundle.path, device="cpu") as session:
        assert session.infer(np.zeros((1, 6), np.float32)).tolist() == [[1, 1, 1, 1]]
    assert (bundle.manifest.weights.origin, bundle.manifest.weights.detail) == ("file", "w.safetensors")
    assert "secret" not in (bundle.path / "manifest.json").read_text()
    save_file({"f.weight": torch.eye(5, 6), "f.bias": torch.ones(5)}, file)
    with pytest.raises(WeightsError, match=r"2 shapes differ"):
        export_model(recipe, tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_factory_is_never_taken_from_the_cache(write: Write, tmp_path: Path) -> None:
    said: list[str] = []
    for name in ("first", "second"):
        export_model(write("def make(): return Tiny()"), tmp_path / name, say=lambda step, *_: said.append(step))
    assert "cache" not in said
    assert not (tmp_path / "cache" / "bundles").exists()


def test_nothing_of_this_machine_stands_in_the_bundle(write: Write, tmp_path: Path) -> None:
    file = str(Path("net.py").resolve())
    recipe = write("def make(): return Tiny()", name=file)
    bundle = export_model(recipe, tmp_path / "out")
    for entry in bundle.path.iterdir():
        content = entry.read_bytes()
        assert str(tmp_path).encode() not in content
        assert b"engineworks_own" not in content
