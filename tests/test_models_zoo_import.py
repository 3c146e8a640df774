"""torchvision comes in, with its compiled operators or without, and its networks run."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from engineworks.models.zoo_import import import_torchvision

pytest.importorskip("torch")
ROOT = Path(__file__).parent.parent


def in_a_new_process(code: str) -> str:
    """Run a line where nothing is imported yet; return what it prints."""
    command = [sys.executable, "-W", "ignore", "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


@pytest.mark.slow
@pytest.mark.zoo
def test_its_networks_run_and_timm_loads_too() -> None:
    for name in ("torchvision", "timm"):
        if importlib.util.find_spec(name) is None:
            pytest.skip(f"{name} is not installed")
    code = (
        "from engineworks.models.zoo_import import import_torchvision; found, declared = import_torchvision(); "
        "import timm, torch; assert import_torchvision() == (found, declared); "
        "net = found.models.get_model('squeezenet1_1', weights=None).eval(); "
        "print(tuple(net(torch.zeros(1, 3, 64, 64)).shape), timm.is_model('resnet18'))"
    )
    assert in_a_new_process(code) == "(1, 1000) True"


def package(folder: Path, text: str) -> None:
    (folder / "torchvision").mkdir()
    (folder / "torchvision" / "__init__.py").write_text(text, "utf-8")


HEAD = "import sys; sys.path.insert(0, {!r}); from engineworks.models.zoo_import import import_torchvision; "


@pytest.mark.slow
def test_a_package_that_loads_is_left_alone(tmp_path: Path) -> None:
    package(tmp_path, "answer = 42")
    code = HEAD.format(str(tmp_path)) + "m, declared = import_torchvision(); print(m.answer, declared)"
    assert in_a_new_process(code) == "42 False"


@pytest.mark.slow
def test_operators_that_are_missing_are_declared(tmp_path: Path) -> None:
    package(tmp_path, "import torch\n@torch.library.register_fake('torchvision::nms')\ndef nms(a, b, c): ...\nfine = 1")
    code = HEAD.format(str(tmp_path)) + "m, declared = import_torchvision(); print(m.fine, declared)"
    assert in_a_new_process(code) == "1 True"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("raise RuntimeError('operator torchvision::more does not exist')", "does not load beside this torch"),
        ("raise RuntimeError('broken')", "does not load: broken"),
    ],
)
def test_a_package_that_needs_more_is_an_import_error(text: str, why: str, tmp_path: Path) -> None:
    package(tmp_path, text)
    code = HEAD.format(str(tmp_path)) + "\ntry: import_torchvision()\nexcept ImportError as error: print(error)"
    assert why in in_a_new_process(code)


def test_a_package_that_is_not_installed_is_an_import_error(monkeypatch: pytest.MonkeyPatch) -> None:
    import_torchvision.cache_clear()
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(ImportError):
        import_torchvision()
