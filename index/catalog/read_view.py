"""The catalogue at one moment: what a search that must not be overtaken by writes reads from.

Does not: outlive the `Catalog.frozen` block that gave it.
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
from index.catalog.filter_sql import to_sql
from index.filters import Where

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Frozen(Generic[T]):
    """The catalogue at one moment; `commits` numbers it, None where nobody counts. Used while `frozen` is open."""

    taken: T
    connection: sqlite3.Connection
    commits: int | None

    def describe(self, vector_ids: Sequence[int]) -> dict[int, tuple[str, str]]:
        """Return {vector id: (key, metadata as JSON)} of those vectors that were there."""
        return describe(self.connection, vector_ids)

    def matching(self, space: int, where: Where) -> NDArray[np.int64]:
        """Return the ids, ascending, of the vectors in `space` whose images fit. Raises FilterError."""
        condition, values = to_sql(where, attributes.known(self.connection), "v.image_id")
        # One text, because a hundred thousand rows through Python's interface take longer than the search.
        [text] = self.connection.execute(
            f"SELECT group_concat(v.id) FROM vectors v WHERE v.space_id = ? AND {condition}",  # noqa: S608
            (space, *values),
        ).fetchone()
        return np.sort(np.fromstring(text or "", np.int64, sep=","))


def describe(connection: sqlite3.Connection, vector_ids: Sequence[int]) -> dict[int, tuple[str, str]]:
    """Return {vector id: (key, metadata as JSON)} of those vectors that are here."""
    rows = connection.execute(
        """SELECT v.id, i.key, i.metadata
           FROM json_each(?) j JOIN vectors v ON v.id = j.value JOIN images i ON i.id = v.image_id""",
        (json.dumps(list(vector_ids)),),
    )
    return {row[0]: (row[1], row[2]) for row in rows}
