"""The exact nearest vectors, found with a device.

The device selects candidates, and the CPU computes their exact distances. If these are all smaller than the bound that
the device guarantees for the other vectors, the result is complete. Otherwise the search is repeated with more
candidates, and at last left to the CPU.

Guarantees: the results equal those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.search.gpu.device import MAX_FOUND
from index.search.gpu.rows import DeviceRows
from index.search.segment import SEGMENT_ROWS, Found
from index.search.view import View

_EXTRA: Final = 64  # candidates beyond k in the first attempt; most searches need no second one
_GROWTH: Final = 4
_CPU_ERROR: Final = 1e-5  # relative error of squared distances on the CPU


class Ranked(Protocol):
    """The nearest candidates of a query."""

    @property
    def distances(self) -> NDArray[np.float64]:
        """Exact distances, float64 [n], ascending."""


R = TypeVar("R", bound=Ranked)
Scan = Callable[[View, NDArray[Any], int], Found]


def search_exactly(
    rows: DeviceRows,
    view: View,
    queries: NDArray[np.float32],
    k: int,
    *,
    scan: Scan,
    rank: Callable[[View, NDArray[np.float32], NDArray[np.int64], int], R],
) -> list[R | None]:
    """Return the `k` nearest rows of the view for each query, float32 [n, 4096]; None where the CPU must search.

    scan: returns candidates among rows that are not on the device. rank: returns the `k` nearest candidates by exact
    distance, and all that tie with the last one.
    """
    results: list[R | None] = [None] * len(queries)
    pending = list(range(len(queries)))
    wide = k + _EXTRA
    while pending and wide <= MAX_FOUND:
        unresolved = []
        for number, (slots, bound) in zip(pending, _candidates(rows, view, queries[pending], wide, scan), strict=True):
            if len(slots) >= k or (len(slots) and bound == np.inf):
                ranked = rank(view, queries[number], slots, k)
                if ranked.distances[min(k, len(ranked.distances)) - 1] ** 2 < bound:
                    results[number] = ranked
                    continue
            unresolved.append(number)
        pending, wide = unresolved, wide * _GROWTH
    return results


def _candidates(
    rows: DeviceRows,
    view: View,
    queries: NDArray[np.float32],
    wide: int,
    scan: Scan,
) -> list[tuple[NDArray[np.int64], float]]:
    """Return candidates of each query from the device and the CPU, and the bound for all other rows."""
    found, rest = rows.scan(view, queries, wide)
    numbers = [number for number, (_, alive) in enumerate(rest) if alive.any()]
    if not numbers:
        return [(each.slots, each.bound) for each in found]
    left = [rest[number] for number in numbers]
    total = sum(int(alive.sum()) for _, alive in left)
    distances, slots = scan(left, queries, min(wide, total))
    segments, offsets = np.divmod(slots, SEGMENT_ROWS)
    slots = np.asarray(numbers)[segments] * SEGMENT_ROWS + offsets
    merged = []
    for row, each in enumerate(found):
        order = np.argsort(distances[row], kind="stable")[:wide]
        bound = each.bound
        if total > wide:
            bound = min(bound, float(distances[row][order[-1]]) * (1 - _CPU_ERROR))
        merged.append((np.concatenate([each.slots, slots[row][order]]), bound))
    return merged
