"""Listings of the searched images by novelty: the distance of their vectors to the training images of the model.

Guarantees: a vector is measured once, when a listing first needs it; its distance is kept as long as the process runs
and its model is searched. Measuring can be stopped at any moment, and the next listing continues. An image that exists
and matches during a whole listing appears in it exactly once, unless it is replaced meanwhile.
Out of scope: appearance, the other measure of novelty (see model_store/novelty), which needs the pictures.
"""

from __future__ import annotations

import threading
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from index.catalog.catalog import Catalog
from index.catalog.listing import matching_vectors, read_vectors
from index.cursor import Listing, is_id, make_cursor, read_cursor
from index.errors import IndexUnavailableError
from index.interface import Stopped
from index.local.space import SearchSpace
from index.records import Page
from index.search.segment import to_float32
from index.search.view import View, ids_at, live_slots, restrict, rows_at
from model_store.novelty.reference import Reference

_BLOCK: Final = 512  # vectors measured in one step
_WAIT_S: Final = 0.1
Ids = NDArray[np.int64]
Floats = NDArray[np.float32]


class NoveltyRanking:
    """The distances of the vectors in `catalog` to the reference of the searched model. All methods are thread-safe."""

    def __init__(self, catalog: Catalog) -> None:
        self._catalog = catalog
        self._measuring = threading.Lock()
        self._space: int | None = None
        self._reference: Reference | None = None
        self._ids = np.empty(0, np.int64)  # ascending
        self._distances = np.empty(0, np.float32)

    def page(
        self,
        space: SearchSpace,
        reference: Reference,
        listing: Listing,
        *,
        limit: int,
        cursor: str | None,
        stopped: Stopped,
    ) -> Page:
        """Return up to `limit` images of a listing by novelty, after `cursor`.

        Raises CursorError, FilterError, and IndexUnavailableError if `stopped` returns True before all are measured.
        """
        identity, number, after = self._catalog.identity, space.record.id, None
        if cursor is not None:
            after = read_cursor(cursor, identity, listing, lambda last: _is_position(last, number))
        with self._catalog.read_view(space.searcher.view) as read_view:
            view, whole = read_view.captured, listing.where is None and not listing.prefix
            if not whole:
                view = restrict(view, matching_vectors(read_view.connection, number, listing))
        ids, values = self._measured(number, reference, view, stopped, whole=whole)
        if listing.descending:
            values = -values
        chosen = _first(ids, values, after, limit + 1)
        with self._catalog.read_view(lambda: None) as read_view:
            images = read_vectors(read_view.connection, ids[chosen[:limit]].tolist())
        if len(chosen) <= limit:
            return Page(images, None)
        last = chosen[limit - 1]
        return Page(images, make_cursor(identity, listing, [float(values[last]), int(ids[last]), number]))

    def _measured(
        self, space: int, reference: Reference, view: View, stopped: Stopped, *, whole: bool
    ) -> tuple[Ids, Floats]:
        """Return the ids, ascending, and the distances of the live rows of a view, int64 [n] and float32 [n].

        whole: the view has all rows of the space.
        """
        slots = live_slots(view)
        ids = ids_at(view, slots)
        while not self._measuring.acquire(timeout=_WAIT_S):
            if stopped():
                raise self._unfinished()
        try:
            if self._space != space or self._reference is not reference:
                self._space, self._reference = space, reference
                self._ids, self._distances = np.empty(0, np.int64), np.empty(0, np.float32)
            missing = slots[~np.isin(ids, self._ids, assume_unique=True)]
            if not self._measure(view, missing, reference, stopped):
                raise self._unfinished()
            found = self._distances[np.searchsorted(self._ids, ids)]
            if whole and len(self._ids) > 2 * len(ids):  # most of them were deleted
                self._ids, self._distances = ids, found
            return ids, found
        finally:
            self._measuring.release()

    def _measure(self, view: View, slots: Ids, reference: Reference, stopped: Stopped) -> bool:
        """Measure more rows, in the order of their slots; return whether all of them were measured."""
        ids, distances, done = [self._ids], [self._distances], 0
        while done < len(slots) and not stopped():
            part = slots[done : done + _BLOCK]
            ids.append(ids_at(view, part))
            distances.append(reference.distances_of(to_float32(rows_at(view, part))))
            done += len(part)
        together = np.concatenate(ids)
        order = np.argsort(together, kind="stable")
        self._ids, self._distances = together[order], np.concatenate(distances)[order]
        return done >= len(slots)

    def _unfinished(self) -> IndexUnavailableError:
        reason = "measuring the novelty of its images takes longer than a request may. Repeat it to continue"
        return IndexUnavailableError(self._catalog.path.parent, reason)


def _first(ids: Ids, values: Floats, after: Any, count: int) -> Ids:
    """Return the positions of the `count` smallest values after a position; equal values are ordered by id."""
    rows = np.arange(len(ids))
    if after is not None:
        rows = np.flatnonzero((values > after[0]) | ((values == np.float32(after[0])) & (ids > after[1])))
    if len(rows) > count:
        largest = np.partition(values[rows], count - 1)[count - 1]
        rows = rows[values[rows] <= largest]
    found: Ids = rows[np.lexsort((ids[rows], values[rows]))][:count]
    return found


def _is_position(value: object, space: int) -> bool:
    """Return whether this is a position among the vectors of a space: [value, vector id, space]."""
    return (
        isinstance(value, list)
        and len(value) == 3
        and isinstance(value[0], float)
        and is_id(value[1])
        and value[2] == space
    )
