"""Small sizes of segments, so that tests with few vectors merge them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from index.search import merging

LARGE, SMALL = 256, 32  # rows of large and small segments with `use_small_segments`


def use_small_segments(change: Callable[[Any, str, int], object]) -> None:
    """Set the sizes of segments with `change`: setattr or that of monkeypatch."""
    for name, value in (("SEGMENT_ROWS", LARGE), ("TAIL_ROWS", SMALL), ("SAVED_ROWS", 16), ("_FIRST_ROWS", 8)):
        change(merging, name, value)
