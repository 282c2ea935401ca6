"""A consistent view of the catalog at one moment, for searches that must agree with the vectors in memory.

Out of scope: use after the `Catalog.read_view` block that created the view.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.catalog import attributes
from index.filters import Where

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class ReadView(Generic[T]):
    """The catalog at one moment, and the state in memory that was captured at the same moment.

    commits: how many transactions were committed before that moment; None for a catalog opened read-only.
    """

    captured: T
    connection: sqlite3.Connection
    commits: int | None

    def describe(self, vector_ids: Sequence[int]) -> dict[int, tuple[str, str]]:
        """Return {vector id: (key, metadata as JSON)} of the vectors that exist in this view."""
        rows = self.connection.execute(
            """SELECT v.id, i.key, i.metadata
               FROM json_each(?) j JOIN vectors v ON v.id = j.value JOIN images i ON i.id = v.image_id""",
            (json.dumps(list(vector_ids)),),
        )
        return {row[0]: (row[1], row[2]) for row in rows}

    def matching(self, space: int, where: Where) -> NDArray[np.int64]:
        """Return the ids, ascending, of the vectors in `space` whose images match. Raises FilterError."""
        condition, values = attributes.to_sql(self.connection, where, "v.image_id")
        # A single string: fetching 100,000 rows one by one takes longer than the search itself.
        [text] = self.connection.execute(
            f"SELECT group_concat(v.id) FROM vectors v WHERE v.space_id = ? AND {condition}",  # noqa: S608
            (space, *values),
        ).fetchone()
        return np.sort(np.fromstring(text or "", np.int64, sep=","))
