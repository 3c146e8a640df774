"""GPU targets of an engine: what TensorRT-RTX compiles for, and what an RTX plan's header says it was compiled for.

A target is written as NVIDIA's compilers write it: ``sm86`` is compute capability 8.6.
"""

import re
import struct
from collections.abc import Iterable
from dataclasses import dataclass

from engineworks.export.trt_compilers import Flavour
from engineworks.runtime.errors import EngineError

RTX_TARGETS = ("sm75", "sm80", "sm86", "sm89", "sm120", "sm121")
"""Every target that TensorRT-RTX 1.7 accepts, in the order of its plan header's bits."""

_DATACENTER = ("sm90", "sm100", "sm103", "sm110")
_WRITTEN = re.compile(r"(?:sm_?)?(?:(\d{1,2})\.(\d)|(\d{2,3}))", re.IGNORECASE)
_NAMED = re.compile(r"\bsm_?(\d{2,3})\b", re.IGNORECASE)
_HEADER = struct.Struct("<4s12xQ4B4xI")
_KNOWN_VERSION = (1, 7)


@dataclass(frozen=True)
class PlanHeader:
    """What the first 64 bytes of an RTX plan tell: its size in bytes, its compiler's version, its targets."""

    size: int
    version: str
    targets: tuple[str, ...]


def parse_targets(text: str, *, flavour: Flavour = "rtx") -> tuple[str, ...]:
    """Read a list such as ``sm86,sm89`` or ``8.6, 8.9``; the answer is sorted and without repeats.

    Args:
        text: the value of ``--target``.
        flavour: for ``tensorrt`` any compute capability is read; whether the host has it is the compiler's question.

    Raises:
        EngineError: a word is no compute capability, or TensorRT-RTX does not compile for it.
    """
    targets = {_parse_target(word.strip()) for word in text.split(",")}
    for target in sorted(targets) if flavour == "rtx" else ():
        _refuse_unsupported(target)
    return tuple(sorted(targets, key=lambda target: int(target[2:])))


def named_targets(message: str, among: Iterable[str]) -> tuple[str, ...]:
    """Pick those targets of ``among`` that a compiler's message names."""
    named = {f"sm{number}" for number in _NAMED.findall(message)}
    return tuple(target for target in among if target in named)


def read_plan_header(plan: bytes) -> PlanHeader | None:
    """Read an RTX plan's header; None where anything about it is unknown. For diagnosis only.

    The layout is undocumented and was found by comparing plans of TensorRT-RTX 1.7.1: ``vtrt`` at 0, the size as u64
    at 16, four version bytes at 24, the targets as a u32 mask at 32. Plans of other versions therefore give None.
    """
    if len(plan) < 64:
        return None
    magic, size, *version, mask = _HEADER.unpack_from(plan)
    known = magic == b"vtrt" and size == len(plan) and tuple(version[:2]) == _KNOWN_VERSION
    if not known or not 0 < mask < 1 << len(RTX_TARGETS):
        return None
    targets = tuple(target for bit, target in enumerate(RTX_TARGETS) if mask >> bit & 1)
    return PlanHeader(size, ".".join(map(str, version)), targets)


def _parse_target(word: str) -> str:
    found = _WRITTEN.fullmatch(word)
    if found is None:
        raise EngineError(f"target {word!r} is no compute capability; expected one of {', '.join(RTX_TARGETS)}")
    return f"sm{found[3] or found[1] + found[2]}"


def _refuse_unsupported(target: str) -> None:
    if target in _DATACENTER:
        raise EngineError(
            f"target {target}: TensorRT-RTX has no Hopper and no datacenter Blackwell. "
            "Compile on a host with that GPU, with --engine tensorrt"
        )
    if target not in RTX_TARGETS:
        raise EngineError(f"target {target}: TensorRT-RTX compiles for {', '.join(RTX_TARGETS)} only")
