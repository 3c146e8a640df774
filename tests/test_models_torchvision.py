"""Our networks beside torchvision's own: the same state dict, loaded strictly both ways, gives the same outputs."""

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("torchvision") is None, reason="torchvision (extra zoo) is not installed"
    ),
]
NAMES = ("alexnet", "vgg16_bn", "googlenet", "resnet18", "resnet34", "resnet50", "resnet101", "resnet152")


@pytest.fixture(scope="module")
def bench() -> ModuleType:
    spec = importlib.util.spec_from_file_location("parity", Path(__file__).parent / "bench" / "torchvision_parity.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", NAMES)
def test_torchvisions_state_dict_fits_strictly_and_answers_the_same(bench: ModuleType, name: str) -> None:
    assert bench.compare(name) <= bench.TOLERANCE
