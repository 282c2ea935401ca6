"""Conversions of a segment's rows."""

from __future__ import annotations

import numpy as np

from index.search.segment import to_float32


def test_every_finite_float16_value_is_converted_exactly() -> None:
    halves = np.arange(65536, dtype=np.uint16).view(np.float16)
    rows = halves[np.isfinite(halves)].reshape(31, 2048)
    converted = to_float32(rows)
    assert np.array_equal(converted.view(np.uint32), rows.astype(np.float32).view(np.uint32))


def test_a_part_of_an_array_is_converted_and_stays_as_it_is() -> None:
    rows = np.linspace(-3, 3, 64, dtype=np.float32).astype(np.float16).reshape(8, 8)
    before = rows.copy()
    assert np.array_equal(to_float32(rows[1::2]), rows[1::2].astype(np.float32))
    assert np.array_equal(rows, before)
