"""check-host judges any host by its facts: what it can do, what does not fit, and the line that mends it."""

import json
from dataclasses import replace
from typing import Any

import pytest

from engineworks.runtime import host as module
from engineworks.runtime.facts import Facts, Gpu
from engineworks.runtime.host import ABILITIES, abilities, gaps, main

Capture = pytest.CaptureFixture[str]
L4 = Gpu("NVIDIA L4", (8, 9), 23_034)
H100 = Gpu("NVIDIA H100", (9, 0), 81_559)
V100 = Gpu("Tesla V100", (7, 0), 16_160)
CUDA = ("libcublas.so.13", "libcudart.so.13", "libc.so.6")
TENSORRT = ("libnvinfer.so.10", "libcudnn.so.9", "libcudart.so.13")
EXPORT = dict.fromkeys(("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxslim", "safetensors"), "99.0")

WHOLE = Facts(
    system="Linux 6.8 (Ubuntu 24.04)",
    distribution="ubuntu",
    machine="x86_64",
    container=False,
    wsl=False,
    python="3.12.1",
    processor="a processor avx2",
    cores=8,
    memory_gib=31.2,
    hardware=True,
    driver="580.65.06",
    driver_cuda=(13, 0),
    driver_trouble="",
    gpus=(L4,),
    packages=EXPORT
    | {"numpy": "99.0", "pillow": "99.0", "click": "99.0", "onnxruntime-gpu": "99.1"}
    | {"tensorrt": "10.13.3", "tensorrt-cu13": "10.13.3", "tensorrt-rtx-cu13": "99.0"},
    needs={"cuda": CUDA, "tensorrt": TENSORRT},
    missing=(),
)
BARE = replace(WHOLE, gpus=(), driver="", driver_cuda=None, driver_trouble="no NVIDIA driver", hardware=False)


def without(*names: str, **versions: str) -> Facts:
    """The whole host with packages removed, and others of these versions (``_`` stands for ``-``)."""
    kept = {name: version for name, version in WHOLE.packages.items() if name not in names}
    return replace(WHOLE, packages=kept | {name.replace("_", "-"): version for name, version in versions.items()})


def barred(host: Facts) -> set[str]:
    return {name for name, able in abilities(gaps(host)).items() if not able}


def mends(host: Facts) -> list[str]:
    return [gap.mend for gap in gaps(host)]


def test_a_host_that_has_everything_has_no_gap() -> None:
    assert gaps(WHOLE) == []
    assert barred(WHOLE) == set()


def test_without_a_gpu_engines_are_still_built_and_bundles_run_on_the_cpu() -> None:
    assert barred(BARE) == {"cuda", "tensorrt", "rtx"}
    assert mends(BARE) == ["no NVIDIA card is on the bus: run this on a host that has one"]


@pytest.mark.parametrize(
    ("changes", "mend"),
    [
        ({"hardware": True}, "sudo ubuntu-drivers install && sudo reboot"),
        ({"hardware": True, "distribution": "debian"}, "sudo apt-get install -y nvidia-driver && sudo reboot"),
        ({"hardware": True, "distribution": "rocky"}, "sudo dnf install -y nvidia-open"),
        ({"container": True}, "docker run --gpus all"),
        ({"wsl": True}, "install NVIDIA's driver in Windows"),
        (
            {"driver": "580.1", "driver_trouble": "the NVIDIA driver finds no usable GPU (cuInit gave error 803)"},
            "sudo reboot",
        ),
    ],
)
def test_a_missing_driver_is_mended_as_the_host_is(changes: dict[str, Any], mend: str) -> None:
    assert mends(replace(BARE, **changes))[0].startswith(mend)


def test_rtx_is_barred_on_a_gpu_that_it_excludes_and_tensorrt_named() -> None:
    host = replace(WHOLE, gpus=(H100,))
    assert barred(host) == {"rtx"}
    assert gaps(host)[0].what == "TensorRT-RTX does not run on NVIDIA H100 (compute capability 9.0)"
    assert barred(replace(WHOLE, gpus=(H100, L4))) == set()


@pytest.mark.parametrize("capability", [(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)])
def test_rtx_runs_on_what_it_is_made_for(capability: tuple[int, int]) -> None:
    assert barred(replace(WHOLE, gpus=(Gpu("a GPU", capability, 1),))) == set()


@pytest.mark.parametrize("capability", [(8, 7), (9, 0), (10, 0), (10, 3), (11, 0)])
def test_rtx_is_barred_elsewhere(capability: tuple[int, int]) -> None:
    assert barred(replace(WHOLE, gpus=(Gpu("a GPU", capability, 1),))) == {"rtx"}


def test_a_gpu_older_than_tensorrt_takes_still_runs_cuda() -> None:
    assert barred(replace(WHOLE, gpus=(V100,))) == {"tensorrt", "rtx"}


def test_a_driver_too_old_for_the_packages_is_told_for_each() -> None:
    host = replace(WHOLE, driver_cuda=(12, 4))
    assert barred(host) == {"cuda", "tensorrt"}
    told = [gap.what for gap in gaps(host)]
    assert told == [
        "onnxruntime is built for CUDA 13, and the driver runs CUDA 12.4 at most",
        "tensorrt-cu13 is built for CUDA 13, and the driver runs CUDA 12.4 at most",
    ]
    assert 'pip uninstall -y tensorrt-cu13 && pip install "tensorrt-cu12"' in mends(host)


def test_onnxruntimes_tensorrt_provider_that_can_never_load_is_remarked_and_bars_nothing() -> None:
    host = without(tensorrt="11.4.0", tensorrt_cu13="11.4.0")
    assert barred(host) == set()
    (remark,) = gaps(host)
    assert remark.what.startswith(
        "onnxruntime's TensorRT provider asks for TensorRT 10, and tensorrt 11.4.0 is installed: it is listed and never"
    )
    assert remark.mend.startswith('pip install "tensorrt>=10,<11"')


def test_torch_of_another_cuda_is_remarked() -> None:
    host = without(torch="99.0+cu126")
    assert barred(host) == set()
    assert gaps(host)[0].what.startswith("torch is built for CUDA 12 and onnxruntime for CUDA 13")


def test_two_onnxruntimes_in_one_environment_are_a_gap() -> None:
    host = without(onnxruntime="99.0")
    assert barred(host) == {"cuda"}
    assert mends(host) == ["pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"]


def test_libraries_that_a_provider_does_not_find_are_named() -> None:
    host = replace(WHOLE, missing=("libcublas.so.13", "libcudnn.so.9", "libnvinfer.so.10"))
    assert barred(host) == {"cuda"}
    assert gaps(host)[0].what == "onnxruntime's CUDA provider does not find libcublas.so.13, libcudnn.so.9"


@pytest.mark.parametrize(
    ("host", "lost", "mend"),
    [
        (without("onnxruntime-gpu"), {"onnxruntime", "cuda"}, "pip install onnxruntime-gpu"),
        (without("tensorrt", "tensorrt-cu13"), {"tensorrt"}, 'pip install "engineworks[tensorrt]"'),
        (without("tensorrt-rtx-cu13"), {"rtx", "rtx-build"}, 'pip install "engineworks[rtx]"'),
        (without("torch"), {"export", "rtx-build"}, 'pip install "engineworks[export]"'),
        (without(tensorrt="8.6.1"), {"tensorrt"}, 'pip install -U "engineworks[tensorrt]"'),
    ],
)
def test_a_missing_package_bars_what_needs_it_and_nothing_else(host: Facts, lost: set[str], mend: str) -> None:
    assert barred(host) == lost
    assert mend in mends(host)


def test_a_package_older_than_we_take_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "minimums", lambda: {"torch": (2, 13), "numpy": (2,), "timm": (1,)})
    host = without(torch="2.12.1+cpu", numpy="1.26.4")
    assert barred(host) == {"export", "rtx-build", "onnxruntime", "cuda"}
    assert 'pip install -U "torch>=2.13"' in mends(host)


def test_our_own_record_tells_the_oldest_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["numpy>=2", "onnxruntime-gpu>=1.31; sys_platform != 'darwin'", "torch>=2.13; extra == 'export'", "plain"]
    monkeypatch.setattr("importlib.metadata.requires", lambda name: lines)
    assert module.minimums() == {"numpy": (2,), "onnxruntime-gpu": (1, 31), "torch": (2, 13)}


# --- the command


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> Any:
    def be(host: Facts) -> None:
        monkeypatch.setattr(module, "facts", lambda: host)

    return be


@pytest.mark.parametrize("need", [*ABILITIES])
def test_a_need_that_is_met_is_status_0_and_silent(here: Any, capsys: Capture, need: str) -> None:
    here(WHOLE)
    assert main(["--needs", need]) == 0
    assert capsys.readouterr().err == ""


def test_a_need_that_is_not_met_is_status_1_with_the_reason(here: Any, capsys: Capture) -> None:
    here(BARE)
    assert main(["--needs", "tensorrt", "--needs", "export"]) == 1
    assert capsys.readouterr().err == "check-host: this host cannot build and run TensorRT engines: no NVIDIA driver.\n"


def test_without_a_need_gaps_are_told_and_are_no_failure(here: Any, capsys: Capture) -> None:
    here(BARE)
    assert main([]) == 0
    told = capsys.readouterr()
    assert "gap        no NVIDIA driver [cuda, tensorrt, rtx]\n" in told.out
    assert "can        run bundles on the CPU (onnxruntime)" in told.out
    assert "cannot     run TensorRT-RTX engines (rtx)" in told.out


def test_every_gpu_is_shown(here: Any, capsys: Capture) -> None:
    here(replace(WHOLE, gpus=(L4, H100)))
    main([])
    out = capsys.readouterr().out
    assert "gpu        NVIDIA L4 (compute capability 8.9), 23,034 MiB" in out
    assert "gpu        NVIDIA H100 (compute capability 9.0), 81,559 MiB" in out
    assert "driver     580.65.06 runs CUDA 13.0 at most" in out


def test_json_holds_facts_abilities_and_gaps(here: Any, capsys: Capture) -> None:
    here(BARE)
    assert main(["--json", "--needs", "cuda"]) == 1
    content = json.loads(capsys.readouterr().out)
    assert content["abilities"] == {name: name not in {"cuda", "tensorrt", "rtx"} for name in ABILITIES}
    assert content["facts"]["gpus"] == []
    assert content["gaps"][0]["abilities"] == ["cuda", "tensorrt", "rtx"]


def test_an_unknown_need_is_wrong_usage(capsys: Capture) -> None:
    assert main(["--needs", "magic"]) == 2
    assert "'magic' is not one of" in capsys.readouterr().err


def test_this_host_is_told_in_full(capsys: Capture) -> None:
    assert main(["--needs", "onnxruntime"]) == 0
    out = capsys.readouterr().out
    assert [line.split()[0] for line in out.splitlines()][:3] == ["host", "cpu", "driver"]
    assert "numpy" in out
