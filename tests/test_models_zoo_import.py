"""torchvision is imported where its compiled operators do not load; nothing else is passed over."""

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from types import ModuleType
from typing import Any

import pytest

from engineworks.models import zoo_import

PART = "torchvision.part_of_a_test"


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """An importlib whose torchvision raises these messages, the last first, and is there when none are left."""
    messages: list[str] = []

    def imported(name: str) -> ModuleType:
        assert name == "torchvision"
        if messages:
            sys.modules[PART] = ModuleType("half imported")
            raise RuntimeError(messages.pop())
        assert PART not in sys.modules, "what was half imported is gone"
        return ModuleType("torchvision")

    monkeypatch.setattr(importlib, "import_module", imported)
    monkeypatch.setattr(zoo_import, "_kept", dict[str, Any]())
    monkeypatch.setattr(zoo_import, "_declare", lambda name: zoo_import._kept.update({name: 0}))
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        monkeypatch.delitem(sys.modules, name)
    yield messages
    sys.modules.pop(PART, None)


def test_where_all_loads_nothing_is_declared(failing: list[str]) -> None:
    module, shimmed = zoo_import.import_torchvision()
    assert (module.__name__, shimmed) == ("torchvision", False)


def test_every_operator_that_stops_the_import_is_declared_once(failing: list[str]) -> None:
    failing[:] = [f"operator torchvision::{name} does not exist" for name in ("qnms", "nms")]
    assert zoo_import.import_torchvision()[1]
    assert list(zoo_import._kept) == ["nms", "qnms"]
    assert zoo_import.import_torchvision()[1], "and it is still said the second time"


@pytest.mark.parametrize(
    "message", ["out of memory", "operator torch::nms does not exist", "Detected that PyTorch and torchvision differ"]
)
def test_any_other_failure_is_raised_as_it_is(failing: list[str], message: str) -> None:
    failing[:] = [message]
    with pytest.raises(RuntimeError, match=message):
        zoo_import.import_torchvision()


def test_an_operator_whose_declaration_does_not_help_is_no_endless_loop(failing: list[str]) -> None:
    failing[:] = ["operator torchvision::nms does not exist"] * 3
    with pytest.raises(RuntimeError, match="torchvision::nms does not exist"):
        zoo_import.import_torchvision()


@pytest.mark.slow
def test_the_real_one_builds_a_network() -> None:
    pytest.importorskip("torch", reason="torch is not installed")
    if importlib.util.find_spec("torchvision") is None:
        pytest.skip("torchvision is not installed")
    import torch

    module, _ = zoo_import.import_torchvision()
    again, _ = zoo_import.import_torchvision()
    assert module is again is sys.modules["torchvision"]
    network = importlib.import_module("torchvision.models").resnet18(weights=None).eval()
    with torch.no_grad():
        assert network(torch.zeros(1, 3, 32, 32)).shape == (1, 1000)
