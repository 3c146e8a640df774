"""What this host is: system, processor, driver, GPUs, packages, and what their libraries ask for.

Nothing heavy is imported or loaded for it: versions come from the packages' own records, and what a library needs
from its file. Only the NVIDIA driver is asked, where there is one.
"""

import os
import platform
import re
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from engineworks.runtime.cuda import probe_gpus
from engineworks.runtime.elf import needed

PACKAGES = (
    "engineworks", "numpy", "pillow", "click", "onnxruntime", "onnxruntime-gpu", "torch", "torchvision", "timm", "onnx",
    "onnx-ir", "onnxscript", "onnxsim", "onnxslim", "safetensors", "tensorrt", "tensorrt-cu12", "tensorrt-cu13",
    "tensorrt-lean", "tensorrt-rtx", "tensorrt-rtx-cu13", "cuda-python", "cuda-bindings", "nvidia-cudnn-cu12",
    "nvidia-cudnn-cu13", "nvidia-cublas", "nvidia-cublas-cu12", "nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12",
)  # fmt: skip
_NVIDIA = "0x10de"  # PCI vendor


@dataclass(frozen=True)
class Gpu:
    """One GPU as the driver tells it; ``capability`` is its compute capability, such as (8, 9)."""

    name: str
    capability: tuple[int, int]
    memory_mib: int


@dataclass(frozen=True)
class Facts:
    """What a host is.

    ``driver_cuda`` is the CUDA version that the driver runs at most; ``driver_trouble`` why there is no GPU to use;
    ``hardware`` whether an NVIDIA card is on the bus; ``distribution`` the ID of os-release; ``needs`` the libraries
    that each provider of onnxruntime asks for, and ``missing`` those of them that are not found here.
    """

    system: str
    distribution: str
    machine: str
    container: bool
    wsl: bool
    python: str
    processor: str
    cores: int
    memory_gib: float
    hardware: bool
    driver: str
    driver_cuda: tuple[int, int] | None
    driver_trouble: str
    gpus: tuple[Gpu, ...]
    packages: dict[str, str]
    needs: dict[str, tuple[str, ...]]
    missing: tuple[str, ...]


def facts() -> Facts:
    """Look at this host."""
    release = _release()
    driver_cuda, gpus, trouble = _ask_driver()
    needs = _provider_needs()
    libraries = {name for names in needs.values() for name in names if name.startswith(("libcu", "libnv"))}
    return Facts(
        system=f"{platform.system()} {platform.release()} ({release.get('PRETTY_NAME', 'unknown distribution')})",
        distribution=release.get("ID", ""),
        machine=platform.machine(),
        container=Path("/.dockerenv").exists() or Path("/run/.containerenv").exists(),
        wsl="microsoft" in platform.release().lower(),
        python=platform.python_version(),
        processor=_processor(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=_memory_gib(),
        hardware=_hardware(),
        driver=_driver_version(),
        driver_cuda=driver_cuda,
        driver_trouble=trouble,
        gpus=gpus,
        packages=_packages(),
        needs=needs,
        missing=tuple(sorted(name for name in libraries - {"libcuda.so.1"} if not _found(name))),
    )


def _text(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _release() -> dict[str, str]:
    try:
        return platform.freedesktop_os_release()
    except OSError:
        return {}


def _processor() -> str:
    told = _text("/proc/cpuinfo")
    name = re.search(r"^model name\s*:\s*(.+)$", told, re.MULTILINE)
    flags = set((re.search(r"^flags\s*:\s*(.+)$", told, re.MULTILINE) or [""])[0].split())
    known = [flag for flag in ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16") if flag in flags]
    return " ".join([name.group(1).strip() if name else platform.processor() or "unknown", *known])


def _memory_gib() -> float:
    told = re.search(r"^MemTotal:\s*(\d+) kB$", _text("/proc/meminfo"), re.MULTILINE)
    return round(int(told.group(1)) / 2**20, 1) if told else 0.0


def _hardware() -> bool:
    """See whether an NVIDIA display controller is on the bus (class 0x03…)."""
    devices = Path("/sys/bus/pci/devices")
    entries = list(devices.iterdir()) if devices.is_dir() else []
    return any(
        _text(f"{entry}/vendor").strip() == _NVIDIA and _text(f"{entry}/class").startswith("0x03") for entry in entries
    )


def _driver_version() -> str:
    told = re.search(r"\b(\d{3}\.\d+(?:\.\d+)?)\b", _text("/proc/driver/nvidia/version"))
    return told.group(1) if told else ""


def _ask_driver() -> tuple[tuple[int, int] | None, tuple[Gpu, ...], str]:
    """Return the driver's CUDA version, the GPUs that can be used, and why there is none."""
    found = probe_gpus()
    gpus = tuple(Gpu(gpu.name, gpu.capability, gpu.memory_mib) for gpu in found.gpus if gpu.capability)
    major, _, minor = (found.cuda or "").partition(".")
    return (int(major), int(minor)) if major else None, gpus, "" if gpus else found.problem


def _packages() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def _provider_needs() -> dict[str, tuple[str, ...]]:
    """Tell for ``cuda`` and ``tensorrt`` which libraries onnxruntime's provider asks for, if it is there."""
    found = {}
    for name in ("onnxruntime-gpu", "onnxruntime"):
        try:
            folder = Path(str(metadata.distribution(name).locate_file("onnxruntime/capi")))
        except metadata.PackageNotFoundError:
            continue
        for provider in ("cuda", "tensorrt"):
            if libraries := needed(folder / f"libonnxruntime_providers_{provider}.so"):
                found[provider] = libraries
    return found


def _found(library: str) -> bool:
    """Look where the loader and the packages of NVIDIA have their libraries."""
    folders = [Path(part) for part in os.environ.get("LD_LIBRARY_PATH", "").split(":") if part]
    folders += [Path(part) for part in ("/usr/lib64", "/usr/local/cuda/lib64", "/lib", "/usr/lib")]
    folders += [Path("/usr/lib") / f"{platform.machine()}-linux-gnu", Path("/lib") / f"{platform.machine()}-linux-gnu"]
    site = Path(str(metadata.distribution("numpy").locate_file("")))
    folders += [*site.glob("nvidia/*/lib"), *site.glob("tensorrt*_libs")]
    return any((folder / library).exists() for folder in folders)
