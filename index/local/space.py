"""One vector space in memory: its searcher, and the changes that arrive while the searcher is being filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index.catalog.images import Change
from index.records import Space, VectorModel
from index.search.product_code import Learned
from index.search.searcher import Searcher


@dataclass(slots=True)
class SearchSpace:
    """A vector space in memory.

    learned: what the code of `fast` was learned from; None if there is none. recall: its last measured recall.
    unchecked: number of vectors added or removed since the recall was measured.
    pending: changes committed while the searcher is being filled; None once it is ready.
    """

    record: Space
    searcher: Searcher
    learned: Learned | None = None
    recall: float | None = None
    unchecked: int = 0
    pending: list[Change] | None = None

    @property
    def model(self) -> VectorModel:
        """The model that computed these vectors."""
        return VectorModel(self.record.fingerprint, self.record.model)

    def apply(self, change: Change) -> None:
        """Apply a committed change to the searcher. Called in the writer's thread."""
        if self.pending is not None:
            self.pending.append(change)
            return
        own = [number for number, space in enumerate(change.spaces) if space == self.record.id]
        if own or change.removed:
            rows = np.asarray([change.rows[number] for number in own], np.float16)
            self.searcher.apply([change.ids[number] for number in own], rows, change.removed)
            self.unchecked += len(own) + len(change.removed)
