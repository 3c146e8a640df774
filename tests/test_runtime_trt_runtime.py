"""Which engine of a bundle fits this host, and the sentence for each reason why none does."""

import importlib.util
import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest

from engineworks.runtime import BackendError, Manifest
from engineworks.runtime.cuda import Gpu
from engineworks.runtime.manifest import EngineRecord
from engineworks.runtime.trt_runtime import absent, check_version, fitting_record, load_module


def record(
    flavour: str = "rtx", targets: tuple[str, ...] = ("sm86", "sm89"), version: str = "1.7.1.116"
) -> EngineRecord:
    return EngineRecord(f"engines/{flavour}-{'-'.join(targets)}.engine", flavour, version, targets, 3, {})


def test_the_engine_for_this_gpu_is_found_among_several(manifest: Manifest) -> None:
    records = (record("tensorrt", ("sm90",)), record("tensorrt", ("sm89",)), record())
    bundle = replace(manifest, engines=records)
    assert fitting_record(bundle, "tensorrt", Gpu("sm89")) is records[1]
    assert fitting_record(bundle, "tensorrt", Gpu("sm90")) is records[0]
    assert fitting_record(bundle, "rtx", Gpu("sm86")) is records[2]


def test_targets_are_the_same_with_and_without_an_underscore(manifest: Manifest) -> None:
    assert fitting_record(manifest, "rtx", Gpu("sm89")).targets == ("sm_89",)


@pytest.mark.parametrize(
    ("records", "flavour", "gpu", "message"),
    [
        ((), "tensorrt", "sm89", "has no tensorrt engine. Re-run export-model --engine tensorrt"),
        ((record(),), "tensorrt", "sm89", "has no tensorrt engine. Re-run export-model --engine tensorrt"),
        (
            (record("tensorrt", ("sm90",), "11.4"),),
            "tensorrt",
            "sm89",
            "engine was built by tensorrt 11.4 for sm_90; this GPU is sm_89. "
            'Re-run export-model here, or open it with backend="onnxruntime".',
        ),
        (
            (record("rtx", ("sm86", "sm120")),),
            "rtx",
            "sm90",
            "engine was built by tensorrt_rtx 1.7.1.116 for sm_86, sm_120; this GPU is sm_90. TensorRT-RTX has no "
            "Hopper and no datacenter Blackwell: re-run export-model here with --engine tensorrt, "
            'or open it with backend="onnxruntime".',
        ),
    ],
)
def test_an_engine_that_does_not_fit_is_told_with_the_mend(
    manifest: Manifest, records: tuple[EngineRecord, ...], flavour: Any, gpu: str, message: str
) -> None:
    with pytest.raises(BackendError) as caught:
        fitting_record(replace(manifest, engines=records), flavour, Gpu(gpu))
    assert str(caught.value) in {f"bundle four-fp16: {message}", f"bundle four-fp16 {message}"}


@pytest.mark.parametrize("version", ["1.7.1.115", "1.7", "1.7.1.1160"])
def test_another_version_than_the_very_one_is_refused(version: str) -> None:
    module: Any = ModuleType("tensorrt_rtx")
    module.__version__ = version
    with pytest.raises(BackendError, match=rf"built by tensorrt_rtx 1\.7\.1\.116; installed is {version}\. Install"):
        check_version(module, record(), "four")
    module.__version__ = "1.7.1.116"
    check_version(module, record(), "four")


def hide(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    for name in names:
        monkeypatch.setitem(sys.modules, name, None)


def test_a_package_that_is_absent_is_told_with_its_pip_line(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt", "tensorrt_rtx", "tensorrt_lean")
    assert absent("tensorrt") == 'tensorrt is not installed. pip install "engineworks[tensorrt]"'
    with pytest.raises(BackendError, match=r'^tensorrt_rtx is not installed\. pip install "engineworks\[rtx\]"$'):
        load_module("rtx")


def test_the_lean_runtime_alone_is_not_taken_for_tensorrt(monkeypatch: pytest.MonkeyPatch) -> None:
    hide(monkeypatch, "tensorrt")
    monkeypatch.setitem(sys.modules, "tensorrt_lean", ModuleType("tensorrt_lean"))
    assert absent("tensorrt").endswith(
        "(tensorrt_lean is, but runs version-compatible engines only, which export-model does not make)"
    )


def test_asking_whether_a_package_is_there_imports_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("tensorrt", "tensorrt_rtx", "tensorrt_lean"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    before = set(sys.modules)
    found: list[Callable[[], str]] = [lambda: absent("tensorrt"), lambda: absent("rtx")]
    assert all(isinstance(ask(), str) for ask in found)
    assert not {"tensorrt", "tensorrt_rtx", "tensorrt_lean"} & (set(sys.modules) - before)


def test_a_package_that_does_not_import_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())

    def fail(name: str) -> None:
        raise ImportError("libnvinfer.so.11:\n cannot open")

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(
        BackendError, match=r"^tensorrt is installed but does not import: ImportError: libnvinfer\.so\.11: cannot open$"
    ):
        load_module("tensorrt")
