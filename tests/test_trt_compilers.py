"""Which compiler is used, and the sentence for each one that is not."""

import importlib.util
import subprocess
import sys
from types import ModuleType

import pytest

from engineworks.export import trt_compilers
from engineworks.export.trt_compilers import Choice, Compiler, Gpu, choose_compiler, installed_compilers
from engineworks.runtime.errors import EngineError

NO_DRIVER = Gpu(None, "no NVIDIA driver (libcuda.so.1 is not found)")


def host(monkeypatch: pytest.MonkeyPatch, *, modules: dict[str, str], gpu: Gpu = NO_DRIVER) -> None:
    """Make a host with these modules at these versions; all others are absent."""
    for name in ("tensorrt", "tensorrt_rtx"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    for name, version in modules.items():
        module = ModuleType(name)
        module.__dict__["__version__"] = version
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(trt_compilers, "probe_gpu", lambda: gpu)


def test_a_missing_compiler_is_told_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, modules={}, gpu=Gpu("sm89"))
    assert installed_compilers() == (
        Compiler("tensorrt", None, 'tensorrt is not installed. pip install "engineworks[tensorrt]"'),
        Compiler("rtx", None, 'tensorrt_rtx is not installed. pip install "engineworks[rtx]"'),
    )
    with pytest.raises(EngineError, match=r'pip install "engineworks\[rtx\]"'):
        choose_compiler("rtx")


def test_a_compiler_that_does_not_import_is_told_with_its_own_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, modules={})
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def fail(name: str) -> None:
        raise ImportError("libnvinfer.so.11: cannot open\nshared object file")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(
        EngineError, match=r"does not import: ImportError: libnvinfer\.so\.11: cannot open shared object"
    ):
        choose_compiler("rtx")


def test_tensorrt_without_gpu_is_passed_over_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, modules={"tensorrt": "11.4", "tensorrt_rtx": "1.7"})
    reason = "tensorrt compiles only where a GPU is: no NVIDIA driver (libcuda.so.1 is not found)"
    assert choose_compiler("auto") == Choice("rtx", (reason,))
    with pytest.raises(EngineError, match="compiles only where a GPU is"):
        choose_compiler("tensorrt")


def test_tensorrt_is_preferred_where_it_can_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, modules={"tensorrt": "11.4", "tensorrt_rtx": "1.7"}, gpu=Gpu("sm90"))
    assert choose_compiler("auto") == Choice("tensorrt")
    assert choose_compiler("auto", targets=("sm90",)) == Choice("tensorrt")
    assert choose_compiler("rtx") == Choice("rtx")


def test_other_targets_than_this_hosts_gpu_need_rtx(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, modules={"tensorrt": "11.4", "tensorrt_rtx": "1.7"}, gpu=Gpu("sm90"))
    choice = choose_compiler("auto", targets=("sm86", "sm89"))
    assert choice == Choice("rtx", ("tensorrt compiles for this host's GPU (sm90), not for sm86, sm89",))


def test_no_compiler_at_all_is_no_error_but_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, modules={})
    choice = choose_compiler("auto")
    assert choice.flavour is None and len(choice.passed_over) == 2
    assert "engineworks[tensorrt]" in choice.passed_over[0] and "GPU" in choice.passed_over[0]


def test_none_is_no_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    host(monkeypatch, modules={"tensorrt_rtx": "1.7"})
    assert choose_compiler("none") == Choice(None, ("no engine was asked for",))


def test_importing_the_module_imports_no_compiler_and_no_framework() -> None:
    code = (
        "import sys, engineworks.export.engine; "
        "print([name for name in ('tensorrt', 'tensorrt_rtx', 'torch', 'onnx') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")
