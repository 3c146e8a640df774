"""Rows are taken apart lazily and put together checked."""

import numpy as np
import pytest

from engineworks.runtime import InputError, Tensor
from engineworks.runtime.checks import contract
from engineworks.runtime.manifest import Batch
from engineworks.runtime.rows import padded, rows_of, stacked

SPECS = contract((Tensor("x", "float32", ("batch", 2)),), Batch(1, 2, 4)).specs
BOTH = contract((Tensor("a", "float32", ("n", 2)), Tensor("b", "int64", ("n",))), Batch(1, 2, 4)).specs
X = np.arange(6, dtype=np.float32).reshape(3, 2)


def test_a_batch_of_rows_is_the_array_that_they_came_from() -> None:
    arrays, give = stacked(SPECS, list(rows_of(SPECS, X)), 0)
    assert np.array_equal(arrays["x"], X)
    assert give is None


def test_columns_become_rows_by_name() -> None:
    found = list(rows_of(BOTH, {"b": np.arange(3), "a": X}))
    assert [int(row["b"]) for row in found] == [0, 1, 2]
    arrays, _ = stacked(BOTH, found, 0)
    assert np.array_equal(arrays["a"], X)


def test_a_generator_is_not_read_ahead() -> None:
    read: list[int] = []
    each = rows_of(SPECS, (read.append(number) or X[0] for number in range(9)))  # type: ignore[func-returns-value]
    next(each)
    assert read == [0]


def test_columns_of_other_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"^infer: expected the inputs a, b, got a\.$"):
        rows_of(BOTH, {"a": X})


def test_a_wrong_row_is_told_by_its_place_in_the_whole() -> None:
    with pytest.raises(InputError, match=r"^infer_batch: row 11 of input 'x': expected float32 \(2,\), got float32"):
        stacked(SPECS, [X[0], X[0, :1]], 10)


def test_the_last_row_is_repeated() -> None:
    assert padded({"x": X}, 2)["x"].tolist() == [*X.tolist(), [4, 5], [4, 5]]
