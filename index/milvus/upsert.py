"""What a call of adds makes of the rows that are in Milvus: the rules of `index.catalog.images`, without a transaction.

Does not: talk to Milvus.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from index.milvus.schema import Row, id_of, searchable
from index.records import AddOutcome, NewImage

_KEEPS = "keeps"  # on a row whose picture is in Milvus, and stays


class Change:
    """The rows that adds make, in order. outcomes: of each add; rows: by id, still without their vectors.

    before: those in Milvus, by id, with the fields STATE. missing_vectors: ids that lack a vector in some space.
    """

    def __init__(self, before: dict[str, Row]) -> None:
        self.before = before
        self.missing_vectors: set[str] = set()
        self.outcomes: list[AddOutcome] = []
        self.rows: dict[str, Row] = {}
        self._numbers: dict[str, int] = {}

    def add(self, number: int, key: str, image: NewImage, metadata: str | None, picture: Row) -> None:
        """Add or replace one image, the `number`-th of the call; `metadata` is JSON, None keeps what there is."""
        row_id = id_of(key)
        before = self.before.get(row_id)
        same = before is not None and before["sha256"] == image.sha256
        if metadata is None:
            metadata = "{}" if before is None else str(before["metadata"])
        fresh = picture["has_picture"] and before is not None and not before["has_picture"]
        if (
            before is not None
            and same
            and metadata == before["metadata"]
            and not fresh
            and row_id not in self.missing_vectors
        ):
            self.outcomes.append(AddOutcome.UNCHANGED)
            return
        moment = now()
        row = {
            "id": row_id,
            "sha256": image.sha256,
            "size": image.size,
            "width": image.width,
            "height": image.height,
            "added": moment if before is None else before["added"],
            "updated": moment,
            **searchable(metadata),
            **picture,
        }
        if before is not None and same and before["has_picture"] and not picture["has_picture"]:
            row |= {"has_picture": True, "picture": before.get("picture", [])}
            row[_KEEPS] = before.get(_KEEPS, "picture" not in before)
        self.outcomes.append(AddOutcome.ADDED if before is None else AddOutcome.REPLACED)
        self.missing_vectors.discard(row_id)
        self.before[row_id] = self.rows[row_id] = row
        self._numbers[row_id] = number

    def without_picture(self) -> list[str]:
        """Return the ids of the rows that keep a picture which is in Milvus."""
        return [row_id for row_id, row in self.rows.items() if row.get(_KEEPS)]

    def keep_pictures(self, stored: Mapping[str, Row]) -> None:
        """Give those rows their pictures."""
        for row_id, row in self.rows.items():
            if row.pop(_KEEPS, False):
                old = stored.get(row_id, {"has_picture": False, "picture": []})
                row |= {"has_picture": bool(old["has_picture"]), "picture": list(old["picture"])}

    def rows_with(self, vectors: Sequence[NDArray[np.float16]] | NDArray[np.float16]) -> list[Row]:
        """Return the rows, each with that of `vectors` which belongs to its add."""
        return [row | {"vector": vectors[self._numbers[i]].astype(np.float32)} for i, row in self.rows.items()]


def now() -> int:
    """Return the time in microseconds since 1970, UTC."""
    return time.time_ns() // 1000
