"""What an error becomes for a client: a status, and words that tell nothing of the host."""

import logging

import pytest

from engineworks.runtime.errors import BackendError, DeadlineError, InputError, QueueFullError
from engineworks.runtime.oip_errors import Refusal, bad, refusal_of


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (bad("x"), 400),
        (InputError("x"), 400),
        (QueueFullError("x"), 503),
        (DeadlineError("x"), 504),
        (BackendError("/dev/gone"), 503),
        (MemoryError(), 503),
        (RuntimeError("/etc/secret"), 500),
    ],
)
def test_every_error_has_a_status_and_tells_no_path(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.ERROR):
        found = refusal_of(error)
    assert isinstance(found, Refusal) and found.status == status and "/" not in str(found)


def test_what_is_not_the_clients_business_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR):
        refusal_of(BackendError("the device is gone"))
    assert "the device is gone" in caplog.text
