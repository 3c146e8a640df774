"""What is asked of a backend is read strictly: a device or number that makes no sense is refused by name."""

from typing import Any

import pytest

from engineworks.runtime import BackendError
from engineworks.runtime.protocol import Place, Speed, Tuning, check_tuning, parse_device


@pytest.mark.parametrize(
    ("device", "place"),
    [
        ("auto", Place("auto")),
        ("cpu", Place("cpu")),
        ("cuda", Place("cuda")),
        ("cuda:0", Place("cuda")),
        ("cuda:12", Place("cuda", 12)),
    ],
)
def test_a_device_is_read(device: str, place: Place) -> None:
    assert parse_device(device) == place


@pytest.mark.parametrize(
    "device", ["gpu", "CUDA", "", "cuda:", "cuda:x", "cuda:-1", "cuda:1234", "cpu:0", " cpu", None, 0]
)
def test_another_device_is_refused(device: Any) -> None:
    with pytest.raises(BackendError) as caught:
        parse_device(device)
    assert str(caught.value) == f"device: expected auto, cpu, cuda or cuda:N, got {device!r}."


@pytest.mark.parametrize(
    ("tuning", "message"),
    [
        (Tuning(contexts=0), "contexts: expected 1 or more, got 0."),
        (Tuning(max_batch=0), "max_batch: expected 1 or more, got 0."),
        (Tuning(speed=Speed(specialisation="fast")), "specialisation: expected lazy, eager or none, got 'fast'."),  # type: ignore[arg-type]
    ],
)
def test_a_number_that_makes_no_sense_is_refused(tuning: Tuning, message: str) -> None:
    with pytest.raises(BackendError) as caught:
        check_tuning(tuning)
    assert str(caught.value) == message


def test_what_makes_sense_is_taken() -> None:
    assert check_tuning(Tuning()) == Tuning(2, None, Speed(False, "eager"))
