"""The command ``check-host``: what this host can build and run, what does not fit, and the line that mends it."""

import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata

import click

from engineworks.runtime.command import leave, status_of
from engineworks.runtime.facts import Facts, Gpu, facts

ABILITIES = {
    "onnxruntime": "run bundles on the CPU",
    "cuda": "run bundles on ONNX Runtime's CUDA provider",
    "tensorrt": "build and run TensorRT engines",
    "rtx": "run TensorRT-RTX engines",
    "rtx-build": "build TensorRT-RTX engines, which needs no GPU",
    "export": "export PyTorch networks",
}
_EXPORT = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "onnxslim", "safetensors")
_ORT = ("onnxruntime-gpu", "onnxruntime")
_BASE = (*_ORT, "numpy", "pillow", "click")
_TENSORRT = ("tensorrt", "tensorrt-cu13", "tensorrt-cu12")
_RTX = ("tensorrt-rtx-cu13", "tensorrt-rtx")
_RTX_GPUS = {(7, 5), (8, 0), (8, 6), (8, 9)}  # and 12.x; TensorRT-RTX 1.7 refuses 9.0, 10.x and 11.0
_OLDEST_GPU = (7, 5)  # TensorRT 11 has no kernels for Volta and before
_RED_HAT = {"fedora", "rhel", "rocky", "almalinux", "centos"}
Version = tuple[int, ...]


@dataclass(frozen=True)
class Gap:
    """What is missing or does not fit, for which abilities, and the line that mends it. Without abilities: a remark."""

    what: str
    mend: str
    abilities: tuple[str, ...]


def run() -> None:
    """Run the command and exit with its status."""
    leave(main)


def main(argv: list[str] | None = None) -> int:
    """Run ``check-host`` with these arguments (default: the process's own); return its exit status."""
    return status_of(_command, "check-host", argv)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--needs", type=click.Choice([*ABILITIES]), multiple=True, help="Exit 1 where this host cannot do it.")
@click.option("--json", "as_json", is_flag=True, help="Print everything for programs.")
def _command(needs: tuple[str, ...], as_json: bool) -> int:
    """Tell what this host can build and run, what is missing or does not fit, and the line that mends it."""
    host = facts()
    found = gaps(host)
    able = abilities(found)
    if as_json:
        content = {"facts": asdict(host), "abilities": able, "gaps": [asdict(gap) for gap in found]}
        click.echo(json.dumps(content, indent=2, ensure_ascii=False))
    else:
        click.echo("\n".join(_lines(host, found)))
    unmet = [name for name in needs if not able[name]]
    for name in unmet:
        why = "; ".join(gap.what for gap in found if name in gap.abilities)
        click.echo(f"check-host: this host cannot {ABILITIES[name]}: {why}.", err=True)
    return int(bool(unmet))


def abilities(found: list[Gap]) -> dict[str, bool]:
    """Tell for every ability whether no gap stands in its way."""
    barred = {name for gap in found for name in gap.abilities}
    return {name: name not in barred for name in ABILITIES}


def gaps(host: Facts) -> list[Gap]:
    """Tell everything that is missing on a host, or that does not fit; pure, so that any host can be judged."""
    return [*_gpu_gaps(host), *_ort_gaps(host), *_tensorrt_gaps(host), *_rtx_gaps(host), *_export_gaps(host)]


def _gpu_gaps(host: Facts) -> Iterator[Gap]:
    needs_gpu = ("cuda", "tensorrt", "rtx")
    if not host.gpus:
        yield Gap(host.driver_trouble, _driver_mend(host), needs_gpu)
    for gpu in host.gpus:
        if gpu.capability < _OLDEST_GPU:
            yield Gap(
                f"{_named(gpu)} is older than compute capability 7.5, where TensorRT begins",
                "run there with device='cuda', or take a GPU of Turing or later",
                ("tensorrt", "rtx"),
            )


def _driver_mend(host: Facts) -> str:
    cases = (
        (
            re.search(r"cuInit gave error (?!100\b)", host.driver_trouble) and host.driver,  # 100: no device
            "sudo reboot  # or the driver's module and libraries differ",
        ),
        (host.wsl, "install NVIDIA's driver in Windows (none inside WSL), then: wsl.exe --shutdown"),
        (host.container, "docker run --gpus all …  # on a host with an NVIDIA GPU and nvidia-container-toolkit"),
        (not host.hardware, "no NVIDIA card is on the bus: run this on a host that has one"),
        (host.distribution == "ubuntu", "sudo ubuntu-drivers install && sudo reboot"),
        (host.distribution in _RED_HAT, "sudo dnf install -y nvidia-open && sudo reboot  # from NVIDIA's repository"),
    )
    return next((mend for fits, mend in cases if fits), "sudo apt-get install -y nvidia-driver && sudo reboot")


def _ort_gaps(host: Facts) -> Iterator[Gap]:
    installed = [name for name in _ORT if name in host.packages]
    if not installed:
        yield Gap("onnxruntime is not installed", f"pip install {_ORT[0]}", ("onnxruntime", "cuda"))
        return
    if len(installed) == 2:
        yield Gap(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other's files",
            "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
            ("cuda",),
        )
    if "cuda" not in host.needs:
        yield Gap(
            "this onnxruntime has no CUDA provider",
            "pip uninstall -y onnxruntime && pip install onnxruntime-gpu",
            ("cuda",),
        )
        return
    yield from _cuda_gaps(host)
    yield from _provider_gaps(host)


def _cuda_gaps(host: Facts) -> Iterator[Gap]:
    wants = _major(host.needs["cuda"], "libcudart.so.")
    if wants and host.driver_cuda and host.driver_cuda[0] < wants:
        yield Gap(
            f"onnxruntime is built for CUDA {wants}, and the driver runs CUDA {_dotted(host.driver_cuda)} at most",
            _driver_mend(host)
            if not host.gpus
            else "update the NVIDIA driver, or pip install an onnxruntime-gpu for it",
            ("cuda",),
        )
    torch = re.search(r"\+cu(\d{2})", host.packages.get("torch", ""))
    if wants and torch and int(torch.group(1)) != wants:
        yield Gap(
            f"torch is built for CUDA {torch.group(1)} and onnxruntime for CUDA {wants}: each needs its own libraries",
            f"pip install torch --index-url https://download.pytorch.org/whl/cu{wants}0",
            (),
        )
    own = [name for name in host.missing if name in host.needs["cuda"] or name.startswith("libcudnn")]
    if own:
        yield Gap(
            f"onnxruntime's CUDA provider does not find {', '.join(own)}",
            'pip install "onnxruntime-gpu[cuda,cudnn]"',
            ("cuda",),
        )


def _provider_gaps(host: Facts) -> Iterator[Gap]:
    """Remark on onnxruntime's own TensorRT provider, which engineworks does without."""
    wants = _major(host.needs.get("tensorrt", ()), "libnvinfer.so.")
    have = _first(host, _TENSORRT)
    if wants and have and have[1][0] != wants:
        yield Gap(
            f"onnxruntime's TensorRT provider asks for TensorRT {wants}, and {have[0]} {_dotted(have[1])} is "
            "installed: it is listed and never loads; engineworks opens engines itself",
            f'pip install "tensorrt>={wants},<{wants + 1}"  # only for sessions of your own',
            (),
        )


def _tensorrt_gaps(host: Facts) -> Iterator[Gap]:
    have = _first(host, _TENSORRT)
    if not have:
        yield Gap("tensorrt is not installed", 'pip install "engineworks[tensorrt]"', ("tensorrt",))
        return
    if have[1] < (10,):
        yield Gap(
            f"tensorrt {_dotted(have[1])} is older than 10", 'pip install -U "engineworks[tensorrt]"', ("tensorrt",)
        )
    built = next((name for name in host.packages if re.fullmatch(r"tensorrt-cu\d+", name)), "")
    wants = int(built.removeprefix("tensorrt-cu")) if built else 0
    if wants and host.driver_cuda and host.driver_cuda[0] < wants:
        yield Gap(
            f"{built} is built for CUDA {wants}, and the driver runs CUDA {_dotted(host.driver_cuda)} at most",
            f'pip uninstall -y {built} && pip install "tensorrt-cu{host.driver_cuda[0]}"',
            ("tensorrt",),
        )


def _rtx_gaps(host: Facts) -> Iterator[Gap]:
    if not _first(host, _RTX):
        on_linux = host.machine == "x86_64" and host.system.startswith("Linux")
        mend = 'pip install "engineworks[rtx]"' if on_linux else "TensorRT-RTX has packages for Linux on x86_64 only"
        yield Gap("tensorrt-rtx is not installed", mend, ("rtx", "rtx-build"))
    barred = [gpu for gpu in host.gpus if gpu.capability not in _RTX_GPUS and gpu.capability < (12, 0)]
    if host.gpus and len(barred) == len(host.gpus):
        yield Gap(
            f"TensorRT-RTX does not run on {_named(barred[0])}",
            'pip install "engineworks[tensorrt]"  # TensorRT does',
            ("rtx",),
        )


def _export_gaps(host: Facts) -> Iterator[Gap]:
    least = minimums()
    absent = [name for name in _EXPORT if name not in host.packages]
    if absent:
        yield Gap(f"{', '.join(absent)} not installed", 'pip install "engineworks[export]"', ("export", "rtx-build"))
    for name, version in least.items():
        if name in host.packages and name not in _TENSORRT and _version(host.packages[name]) < version:
            barred = ("export", "rtx-build") if name in _EXPORT else ("onnxruntime", "cuda") if name in _BASE else ()
            yield Gap(
                f"{name} {host.packages[name]} is older than {_dotted(version)}",
                f'pip install -U "{name}>={_dotted(version)}"',
                barred,
            )


def minimums() -> dict[str, Version]:
    """Return the oldest version of each package that engineworks takes, from its own record; none where it has none."""
    try:
        lines = metadata.requires("engineworks") or []
    except metadata.PackageNotFoundError:
        return {}
    found = (re.match(r"([A-Za-z0-9._-]+).*?>=([\d.]+)", line.split(";")[0]) for line in lines)
    return {match.group(1).lower(): _version(match.group(2)) for match in found if match}


def _version(text: str) -> Version:
    match = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in match.group().split(".")) if match else ()


def _first(host: Facts, names: tuple[str, ...]) -> tuple[str, Version] | None:
    return next(((name, _version(host.packages[name])) for name in names if name in host.packages), None)


def _major(libraries: tuple[str, ...], head: str) -> int:
    """Return the version of a library among those needed, or 0."""
    tails = [name.removeprefix(head) for name in libraries if name.startswith(head)]
    return int(tails[0].split(".")[0]) if tails and tails[0][:1].isdigit() else 0


def _dotted(version: Version) -> str:
    return ".".join(map(str, version))


def _named(gpu: Gpu) -> str:
    return f"{gpu.name} (compute capability {_dotted(gpu.capability)})"


def _lines(host: Facts, found: list[Gap]) -> Iterator[str]:
    place = ", in a container" if host.container else ", in WSL" if host.wsl else ""
    yield _row("host", f"{host.system}, {host.machine}{place}; Python {host.python}")
    yield _row("cpu", f"{host.processor}; {host.cores} cores, {host.memory_gib} GiB")
    cuda = f"runs CUDA {_dotted(host.driver_cuda)} at most" if host.driver_cuda else "none"
    yield _row("driver", f"{host.driver} {cuda}".strip())
    for gpu in host.gpus:
        yield _row("gpu", f"{_named(gpu)}, {gpu.memory_mib:,} MiB")
    if not host.gpus:
        yield _row("gpu", f"none: {host.driver_trouble}")
    yield _row("packages", ", ".join(f"{name} {version}" for name, version in host.packages.items()))
    able = abilities(found)
    for name, words in ABILITIES.items():
        yield _row("can" if able[name] else "cannot", f"{words} ({name})")
    for gap in found:
        yield _row(
            "gap" if gap.abilities else "remark", gap.what + (f" [{', '.join(gap.abilities)}]" * bool(gap.abilities))
        )
        yield _row("  mend", gap.mend)


def _row(head: str, text: str) -> str:
    return f"{head:<10} {text}"


if __name__ == "__main__":
    run()
