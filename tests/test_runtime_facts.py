"""What a host is told to be is what its files and its driver say."""

import ctypes
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from engineworks.runtime import facts as module
from engineworks.runtime.cuda import probe_gpus
from engineworks.runtime.facts import Gpu, facts


def fake_driver(capability: tuple[int, int], init: int = 0, count: int = 1) -> Any:
    def put(pointer: Any, value: int) -> int:
        pointer._obj.value = value
        return 0

    def name(buffer: Any, size: int, device: Any) -> int:
        buffer.value = b"NVIDIA X"
        return 0

    return SimpleNamespace(
        cuInit=lambda flags: init,
        cuDriverGetVersion=lambda pointer: put(pointer, 12040),
        cuDeviceGetCount=lambda pointer: put(pointer, count),
        cuDeviceGet=put,
        cuDeviceGetName=name,
        cuDeviceTotalMem_v2=lambda pointer, device: put(pointer, 24 << 30),
        cuDeviceGetAttribute=lambda pointer, which, device: put(pointer, capability[which - 75]),
    )


def test_the_driver_tells_its_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: fake_driver((8, 9), count=2))
    assert module._ask_driver() == ((12, 4), (Gpu("NVIDIA X", (8, 9), 24_576),) * 2, "")


@pytest.mark.parametrize(
    ("driver", "told"),
    [
        (fake_driver((8, 9), init=803), "the NVIDIA driver finds no usable GPU (cuInit gave error 803)"),
        (fake_driver((8, 9), count=0), "the NVIDIA driver shows 0 GPUs (cuDeviceGetCount gave error 0)"),
    ],
)
def test_a_driver_without_a_gpu_says_why(monkeypatch: pytest.MonkeyPatch, driver: Any, told: str) -> None:
    monkeypatch.setattr(ctypes, "CDLL", lambda name: driver)
    assert module._ask_driver() == ((12, 4), (), told)


def test_this_host_is_told_as_it_is() -> None:
    found = facts()
    assert found.python == ".".join(map(str, sys.version_info[:3]))
    assert found.packages["numpy"] == np.__version__
    assert found.cores >= 1 and found.memory_gib > 0
    assert len(found.gpus) == len(probe_gpus().gpus)
    assert bool(found.driver_trouble) == (not found.gpus)


def test_what_onnxruntimes_providers_need_is_read_from_their_files() -> None:
    found = facts()
    if "onnxruntime-gpu" not in found.packages or not found.needs:
        pytest.skip("this onnxruntime has no provider libraries")
    assert any(name.startswith("libcudart.so.") for name in found.needs["cuda"])
    assert any(name.startswith("libnvinfer.so.") for name in found.needs["tensorrt"])


def test_looking_at_a_host_imports_nothing_heavy() -> None:
    script = (
        "import sys; from engineworks.runtime.host import main; main([]);"
        "bad = {'torch', 'onnx', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'numpy', 'PIL'} & sys.modules.keys();"
        "assert not bad, bad"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", script], check=True, capture_output=True)
