"""The memory that all bodies together may hold."""

import pytest

from engineworks.runtime.oip_errors import Refusal
from engineworks.runtime.serve_limits import Budget, Share


def test_what_is_held_is_given_back_once() -> None:
    budget = Budget(100)
    one, other = Share(budget), Share(budget)
    one.grow(60)
    other.grow(40)
    with pytest.raises(Refusal, match="Try again") as refused:
        other.grow(1)
    assert refused.value.status == 503 and budget.held == 100
    one.close()
    one.close()
    other.grow(60)
    other.close()
    assert budget.held == 0
