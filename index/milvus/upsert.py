"""The rows that one `add_many` writes to Milvus. The rules are those of `index.catalog.images`.

Out of scope: talking to Milvus.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from index.catalog.images import Entry
from index.milvus.schema import Row, id_of, searchable
from index.records import AddOutcome, now


class Upsert:
    """Collects the rows to write, in the order of the added images.

    stored: the rows in Milvus, by id, with the fields STATE. kept_pictures: ids of the rows whose picture must be
    copied from Milvus.
    outcomes: of each add. rows: the rows to write, by id, without their vectors.
    """

    def __init__(self, stored: dict[str, Row]) -> None:
        self.stored = stored
        self.kept_pictures: set[str] = set()
        self.outcomes: list[AddOutcome] = []
        self.rows: dict[str, Row] = {}
        self._entries: dict[str, Entry] = {}

    def add(self, entry: Entry, picture: Row) -> None:
        """Add or replace one image. picture: the fields of the row that hold its picture."""
        row_id = id_of(entry.key)
        stored = self.stored.get(row_id)
        content = {"sha256": entry.sha256, "preparation": entry.preparation}
        same = stored is not None and all(stored[name] == value for name, value in content.items())
        metadata = entry.metadata
        if metadata is None:
            metadata = "{}" if stored is None else str(stored["metadata"])
        new_picture = picture["has_picture"] and stored is not None and not stored["has_picture"]
        if stored is not None and same and metadata == stored["metadata"] and not new_picture:
            self.outcomes.append(AddOutcome.UNCHANGED)
            return
        time_us = now()
        row = {
            "id": row_id,
            **content,
            "size": entry.size,
            "width": entry.width,
            "height": entry.height,
            "added": time_us if stored is None else stored["added"],
            "updated": time_us,
            **searchable(metadata),
            **picture,
        }
        if stored is not None and same and stored["has_picture"] and not picture["has_picture"]:
            row |= {"has_picture": True, "picture": stored.get("picture", [])}
            if "picture" not in stored:  # otherwise it was added by this call, or its id is in the set already
                self.kept_pictures.add(row_id)
        else:
            self.kept_pictures.discard(row_id)
        self.outcomes.append(AddOutcome.ADDED if stored is None else AddOutcome.REPLACED)
        self.stored[row_id] = self.rows[row_id] = row
        self._entries[row_id] = entry

    def keep_pictures(self, stored: Mapping[str, Row]) -> None:
        """Copy the kept pictures. stored: the rows in Milvus with their pictures, by id."""
        for row_id in self.kept_pictures:
            old = stored.get(row_id, {"has_picture": False, "picture": []})
            self.rows[row_id] |= {"has_picture": bool(old["has_picture"]), "picture": list(old["picture"])}

    def rows_for(self, fingerprint: str) -> list[Row]:
        """Return the rows with their vectors of one model. Raises KeyError if they were not embedded with it."""
        return [
            row | {"vector": self._entries[row_id].vectors[fingerprint].astype(np.float32)}
            for row_id, row in self.rows.items()
        ]
