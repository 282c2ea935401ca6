"""Search with a device: the exact nearest vectors, and the candidates of `fast`.

For an exact search, the device selects candidates, and the CPU computes their exact distances. If these are all smaller
than the bound that the device guarantees for the other vectors, the result is complete. Otherwise the search is
repeated with more candidates, and at last left to the CPU.

Guarantees: the results equal those of the CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.search.gpu.device import MAX_FOUND
from index.search.gpu.rows import DeviceRows, Found
from index.search.ranking import TIE, Hits, rank_candidates
from index.search.segment import SEGMENT_ROWS
from index.search.segment import Found as Scanned
from index.search.view import View

_EXTRA: Final = 64  # candidates beyond k in the first attempt; most searches need no second one
_GROWTH: Final = 4


# Scans a part of a view for the best candidates of queries on the CPU, as `Searcher._scan` does. The last argument has
# the numbers of the part's segments in the view.
Scan = Callable[[View, NDArray[Any], int, list[int]], Scanned]


def search_exactly(
    rows: DeviceRows,
    view: View,
    queries: NDArray[np.float32],
    k: int,
    *,
    scan: Scan,
) -> list[Hits | None]:
    """Return the `k` nearest rows of the view for each query, float32 [n, 4096]; None where the CPU must search.

    scan: returns candidates among rows that are not on the device.
    """
    results: list[Hits | None] = [None] * len(queries)
    pending = list(range(len(queries)))
    wide = k + _EXTRA
    while pending and wide <= MAX_FOUND:
        unresolved = []
        for number, found in zip(pending, candidates(rows, view, queries[pending], wide, scan), strict=True):
            if len(found.slots) >= k or (len(found.slots) and found.bound == np.inf):
                ranked = rank_candidates(view, queries[number], found.slots, k)
                if ranked.distances[min(k, len(ranked.distances)) - 1] ** 2 < found.bound:
                    results[number] = ranked
                    continue
            unresolved.append(number)
        pending, wide = unresolved, wide * _GROWTH
    return results


def candidates(rows: DeviceRows, view: View, queries: NDArray[np.float32], wide: int, scan: Scan) -> list[Found]:
    """Return the best `wide` candidates, or more, of each query from the device and from a scan of what is not on it.

    queries: as the rows on the device, float32 [n, dimensions]. There can be fewer if the view excludes many rows.
    """
    found, rest = rows.scan(view, queries, wide)
    numbers = [number for number, (_, alive) in enumerate(rest) if alive.any()]
    if not numbers:
        return found
    left = [rest[number] for number in numbers]
    total = sum(int(alive.sum()) for _, alive in left)
    distances, slots = scan(left, queries, min(wide, total), numbers)
    segments, offsets = np.divmod(slots, SEGMENT_ROWS)
    slots = np.asarray(numbers)[segments] * SEGMENT_ROWS + offsets
    merged = []
    for row, each in enumerate(found):
        order = np.argsort(distances[row], kind="stable")[:wide]
        estimates, bound = distances[row][order], each.bound
        if total > wide:
            bound = min(bound, float(estimates[-1]) * (1 - TIE))
        merged.append(
            Found(np.concatenate([each.slots, slots[row][order]]), np.concatenate([each.estimates, estimates]), bound)
        )
    return merged
