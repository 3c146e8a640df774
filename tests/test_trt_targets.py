"""GPU targets: what may be written, what is refused and with which words, and what a plan's header tells."""

import struct

import pytest

from engineworks.export.trt_targets import RTX_TARGETS, PlanHeader, named_targets, parse_targets, read_plan_header
from engineworks.runtime.errors import EngineError


def header(
    *, magic: bytes = b"vtrt", size: int = 100, version: tuple[int, ...] = (1, 7, 1, 116), mask: int = 12
) -> bytes:
    return (magic + bytes(12) + struct.pack("<Q4B4xI", size, *version, mask)).ljust(100, b"\0")


@pytest.mark.parametrize("text", ["sm86,sm89", "8.6, 8.9", "SM89,sm_86", "86,89,sm86"])
def test_targets_are_read_in_every_usual_spelling_and_sorted(text: str) -> None:
    assert parse_targets(text) == ("sm86", "sm89")


def test_targets_are_sorted_by_number_not_by_letters() -> None:
    assert parse_targets(",".join(reversed(RTX_TARGETS))) == RTX_TARGETS
    assert parse_targets("12.0,7.5") == ("sm75", "sm120")


@pytest.mark.parametrize("target", ["sm90", "10.0", "103", "sm110"])
def test_hopper_and_datacenter_blackwell_are_refused_with_the_way_out(target: str) -> None:
    with pytest.raises(EngineError, match=r"has no Hopper and no datacenter Blackwell.*--engine tensorrt"):
        parse_targets(f"sm86,{target}")


@pytest.mark.parametrize("text", ["sm87", "sm99"])
def test_an_unsupported_target_is_refused_naming_the_known_ones(text: str) -> None:
    with pytest.raises(EngineError, match=r"compiles for sm75, sm80, sm86, sm89, sm120, sm121 only"):
        parse_targets(text)


@pytest.mark.parametrize("text", ["", "sm86,", "ampere", "sm", "8", "8.66", "sm1234", "all"])
def test_a_word_that_is_no_compute_capability_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match="is no compute capability; expected one of sm75"):
        parse_targets(text)


def test_tensorrt_reads_any_compute_capability() -> None:
    assert parse_targets("9.0,sm87", flavour="tensorrt") == ("sm87", "sm90")


def test_targets_named_in_a_compilers_message_are_picked() -> None:
    assert named_targets("for target(s) sm75, because", RTX_TARGETS) == ("sm75",)
    assert named_targets("for Turing (SM75): FP32 GEMM", RTX_TARGETS) == ("sm75",)
    assert named_targets("sm1200 or sm90 or 86", RTX_TARGETS) == ()


def test_a_header_is_read() -> None:
    assert read_plan_header(header()) == PlanHeader(100, "1.7.1.116", ("sm86", "sm89"))
    full = read_plan_header(header(mask=0x3F))
    assert full is not None and full.targets == RTX_TARGETS


@pytest.mark.parametrize(
    "plan",
    [
        b"", b"vtrt", header()[:63], header()[:-1], header() + b"\0", header(magic=b"ptrt"),
        header(version=(1, 8, 0, 0)), header(version=(11, 4, 0, 106)), header(mask=0),
        header(mask=0x7E), header(mask=1 << 31),
    ],
)  # fmt: skip
def test_an_unknown_header_gives_none(plan: bytes) -> None:
    assert read_plan_header(plan) is None
