"""Which of two engines is faster is predicted from bytes, operations and cited peaks, and called a prediction."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from engineworks.runtime.errors import BackendError
from engineworks.runtime.inspect import main
from engineworks.runtime.pays import GPUS, Gpu, chief_type, predict, seconds
from engineworks.runtime.xray import NOT_SEEN, Layer, Row, Xray
from tests.written_plan import small

Capture = pytest.CaptureFixture[str]
ROUND = Gpu("round", "sm86", 100e9, {"float32": 1e12, "float16": 10e12, "int8": 20e12}, "made up")


def row(kind: str, moved: float, multiply_adds: float = 0) -> Row:
    return Row(("layer",), "", "", kind, "kernel", int(moved), int(multiply_adds))


def xray(*rows: Row, target: str = "sm86", batch: int = 8) -> Xray:
    return Xray("1.7.1.116", (target,), batch, rows, ())


def test_a_kernel_takes_as_long_as_its_bytes_or_its_operations_whichever_is_longer() -> None:
    moving, computing = row("float16", 1e9, 1e9), row("float16", 1e6, 1e12)
    assert seconds(xray(moving), ROUND) == pytest.approx((0.01, 0.01))  # 1 GB at 100 GB/s; 2 G operations take 0.2 ms
    assert seconds(xray(computing), ROUND) == pytest.approx((0.2, 0.0))  # 2 T operations at 10 T/s
    assert seconds(xray(moving, computing), ROUND) == pytest.approx((0.21, 0.01))


@pytest.mark.parametrize(("kind", "expected"), [("int8", 0.1), ("float16×int8", 0.2), ("int8, float32", 2.0)])
def test_a_product_runs_at_the_rate_of_its_wider_type(kind: str, expected: float) -> None:
    assert seconds(xray(row(kind, 1, 1e12)), ROUND)[0] == pytest.approx(expected)


def test_what_carries_from_type_to_type_needs_no_rate_and_a_product_without_one_is_refused() -> None:
    assert seconds(xray(row("bool→int64", 1e9)), ROUND)[0] == pytest.approx(0.01)
    with pytest.raises(BackendError, match="GPU round: no rate for bfloat16 is known"):
        seconds(xray(row("bfloat16", 1e9, 1e9)), ROUND)


def test_int8_that_computes_pays_and_int8_that_moves_more_does_not() -> None:
    half = xray(row("float16", 1e6, 1e12))
    assert predict([xray(row("int8", 1e6, 1e12))], [half], "A10")[0].verdict == (
        "INT8 pays: A, in int8, would be 2.00 × as fast"
    )
    moved = xray(row("float32→int8", 100e9), row("int8", 1e6, 1e12))
    found = predict([moved], [half], "A10")[0]
    assert found.verdict.startswith("INT8 does not pay: B, in float16, would be 10.9")
    assert found.kinds == ("int8", "float16") and found.bound_by_memory == pytest.approx((0.954, 0.0), abs=1e-3)


def test_a_small_difference_is_too_close_to_call() -> None:
    found = predict([xray(row("float16", 100e6))], [xray(row("float16", 105e6))], "A10")
    assert found[0].verdict == "too close to call (1.05 ×)"


def test_every_gpu_that_both_have_an_engine_for_is_predicted() -> None:
    ampere, turing = xray(row("int8", 9)), xray(row("int8", 9), target="sm75")
    assert [one.gpu for one in predict([ampere, turing], [ampere])] == ["A10", "A40"]
    assert [one.gpu for one in predict([ampere, turing], [turing, ampere])] == ["T4", "A10", "A40"]


def test_what_cannot_be_compared_is_told() -> None:
    ampere, ada = xray(row("int8", 9)), xray(row("int8", 9), target="sm89")
    with pytest.raises(BackendError, match=r"no engine on both sides for .*; they are for sm86 and sm89"):
        predict([ampere], [ada])
    with pytest.raises(BackendError, match=r"GPU 'RTX 9999': no figures; known are T4, A100-40GB, A10"):
        predict([ampere], [ampere], "RTX 9999")
    with pytest.raises(BackendError, match=r"A is for batch 8, B for 16: pass --batch"):
        predict([ampere], [xray(row("int8", 9), batch=16)])


def test_an_engine_of_which_a_layer_is_not_seen_is_not_predicted() -> None:
    ampere = xray(row("int8", 9))
    hidden = replace(ampere, layers=(Layer("fc", "Gemm", "", "int8", NOT_SEEN, "", 0),))
    with pytest.raises(BackendError, match="B: what 1 of its layers cost is not seen, fc among them"):
        predict([ampere], [hidden])


def test_the_chief_type_is_that_of_most_multiply_adds() -> None:
    assert chief_type(xray(row("float32→int8", 9), row("int8", 1, 90), row("float16", 1, 10))) == "int8"
    assert chief_type(xray()) == "nothing"


def test_every_gpu_has_a_source_and_rates_that_double_from_half_to_int8() -> None:
    assert len({gpu.name for gpu in GPUS}) == len(GPUS)
    for gpu in GPUS:
        assert gpu.source.startswith("NVIDIA ") and gpu.target in {"sm75", "sm80", "sm86", "sm89", "sm120"}
        assert gpu.rates["int8"] / gpu.rates["float16"] == pytest.approx(2, rel=0.02)
        assert 100e9 < gpu.bandwidth < 10e12 and ("bfloat16" in gpu.rates) is (gpu.target != "sm75")


# --- the command


@pytest.fixture
def engines(tmp_path: Path) -> list[str]:
    for name, kind in (("a.engine", "float32"), ("b.engine", "float16")):
        (tmp_path / name).write_bytes(small(weights=kind, batch="n"))
    return [str(tmp_path / "a.engine"), "--against", str(tmp_path / "b.engine"), "--batch", "8"]


def test_the_command_says_which_is_faster_and_that_nothing_was_timed(engines: list[str], capsys: Capture) -> None:
    assert main([*engines, "--gpu", "a10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"A  {engines[0]}" and lines[1] == f"B  {engines[2]}"
    assert (
        lines[2].startswith("  A10  A 0.000 ms (100% waiting for memory), B") and "B, in float16, would be" in lines[2]
    )
    assert "nothing was timed" in lines[3] and len(lines) == 4


def test_json_says_that_it_is_not_measured_and_where_the_figures_are_from(engines: list[str], capsys: Capture) -> None:
    assert main([*engines, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert [(one["gpu"], one["measured"]) for one in found] == [("A10", False), ("A40", False)]
    assert found[0]["source"] == "NVIDIA A10 Tensor Core GPU datasheet" and found[0]["seconds"][0] > 0


def test_an_unknown_gpu_is_status_1_and_gpu_without_against_is_wrong_usage(engines: list[str], capsys: Capture) -> None:
    assert main([*engines, "--gpu", "H100"]) == 1
    assert "GPU 'H100': no figures; known are" in capsys.readouterr().err
    assert main([engines[0], "--gpu", "L4"]) == 2
    assert main([*engines, "--layers"]) == 2
    assert "exclude each other" in capsys.readouterr().err
