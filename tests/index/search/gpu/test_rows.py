"""The error bound covers the arithmetic of FAISS's float16 index on a GPU."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from index.search.gpu.rows import LARGEST, error_bound


def gpu_estimate(row: NDArray[np.float16], query: NDArray[np.float16]) -> float:
    """Compute a squared distance as FAISS does: squares in float16, one after the other added in float32."""
    norms = [np.add.accumulate((each * each).astype(np.float32), dtype=np.float32)[-1] for each in (row, query)]
    products = row.astype(np.float32) * query.astype(np.float32)
    product = np.add.accumulate(products, dtype=np.float32)[-1]
    return float(np.float32(norms[0] - 2 * product) + norms[1])


@pytest.mark.parametrize(
    "value",
    [1 + 2**-5 + 2**-10, 1.4140625, 0.001, 2**-12, 2**-14 * 1.5, 17.3, LARGEST],
)
def test_the_bound_covers_the_worst_rounding(value: float) -> None:
    # All values are rounded in the same direction.
    row = np.full(4096, value, np.float16)
    for query in (row, np.nextafter(row, np.float16(0)), np.zeros_like(row), np.roll(row * np.float16(0.5), 1)):
        exact = float(((row.astype(np.float64) - query.astype(np.float64)) ** 2).sum())
        lengths = [float(np.linalg.norm(each.astype(np.float64))) for each in (row, query)]
        [bound] = error_bound(lengths[0], np.array(lengths[1:]), 4096)
        assert abs(gpu_estimate(row, query) - exact) <= bound


def test_the_bound_is_small_compared_with_distances() -> None:
    rows = np.maximum(np.random.default_rng(0).standard_normal((2, 4096)), 0)
    length = float(np.linalg.norm(rows[0]))
    [bound] = error_bound(length, np.linalg.norm(rows[1:], axis=1), 4096)
    assert bound < 0.01 * ((rows[0] - rows[1]) ** 2).sum()
