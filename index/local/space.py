"""A vector space in memory: its searcher, and the changes that arrive while the searcher is filled."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from index.catalog.images import Change
from index.records import Space
from index.search.searcher import Searcher


@dataclass(slots=True)
class SearchSpace:
    """A space in memory. unsaved: how many of its vectors the snapshot does not have."""

    space: Space
    searcher: Searcher
    unsaved: int = 0
    pending: list[Change] | None = None  # what was committed while the searcher was being filled

    def apply(self, change: Change) -> None:
        """Bring the searcher up to what was committed; runs in the writer's thread."""
        if self.pending is not None:
            self.pending.append(change)
            return
        own = [number for number, space in enumerate(change.spaces) if space == self.space.id]
        if own or change.removed:
            rows = np.asarray([change.rows[number] for number in own], np.float16)
            self.searcher.apply([change.ids[number] for number in own], rows, change.removed)
            self.unsaved += len(own) + len(change.removed)
