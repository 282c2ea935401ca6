"""Measure how many exact neighbors the search mode `fast` finds, with stored vectors as queries.

Guarantees: one core at most, and only half of the time, so that searches go on meanwhile.
Out of scope: comparing codes with each other (see code_quality.py).
"""

from __future__ import annotations

import threading
import time

import numpy as np
from numpy.typing import NDArray

from index.search.searcher import Searcher
from index.search.view import View, ids_at, live_slots, rows_at

NEAREST = 10
_QUERIES = 64
_TIE = 1e-4  # relative; distances this close count as equal


def measure_recall(searcher: Searcher, stop: threading.Event, *, seed: int = 0) -> float | None:
    """Return the share of the 10 nearest neighbors of random stored vectors, without themselves, that `fast` finds.

    Returns None if there are too few vectors, or once `stop` is set.
    """
    view = searcher.view()
    slots = live_slots(view)
    if len(slots) <= NEAREST:
        return None
    chosen = np.sort(np.random.default_rng(seed).permutation(len(slots))[:_QUERIES])
    queries, own = rows_at(view, slots[chosen]), ids_at(view, slots[chosen])
    limits = _distances_of_last(view, queries, stop)
    if limits is None:
        return None
    found = 0
    for query, vector_id, limit in zip(queries, own, limits, strict=True):
        if stop.is_set():
            return None
        [hits] = searcher.search(query[np.newaxis], NEAREST + 1, view, "fast")
        others = hits.distances[hits.ids != vector_id]
        found += min(NEAREST, int((others <= limit * (1 + _TIE) + _TIE).sum()))
    return found / (NEAREST * len(queries))


def _distances_of_last(view: View, queries: NDArray[np.float16], stop: threading.Event) -> NDArray[np.float64] | None:
    """Return the exact distance of the tenth neighbor of each query, which is one of the vectors; None if stopped."""
    floats = queries.astype(np.float32)
    nearest = np.full((len(queries), NEAREST + 1), np.inf, np.float32)
    for segment, alive in view:
        started = time.perf_counter()
        count = min(NEAREST + 1, int(alive.sum()))
        if count:
            squared, _ = segment.search(floats, count, alive)
            nearest = np.sort(np.hstack([nearest, squared]), axis=1)[:, : NEAREST + 1]
        if stop.wait(time.perf_counter() - started):
            return None
    last: NDArray[np.float64] = np.sqrt(nearest[:, NEAREST].astype(np.float64))
    return last
