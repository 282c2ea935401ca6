"""The index on Milvus: implements `ImageIndex`, and is shared by all replicas of the service with the same address.

Guarantees: an add or delete that returned is in Milvus, and every later search of every replica sees it, except in the
5 seconds after a switch to another model. A switch keeps it (see aliases.py). An image is one row, and changes as a
whole. Results (distances, order, filters) are those of a local index. Vectors of two models are never compared: each
model has a collection of its own.
Out of scope: making a call with several images atomic. If Milvus fails in the middle, some images are stored, each one
completely, and repeating the call is safe. If two replicas change the same image at the same time, the later change
wins. Images are listed by key, because replicas cannot agree on the order of addition.

Milvus finds the candidates. The distances are computed here from the stored vectors, so they are exact, and equal
distances are ordered by key. If an index other than FLAT was created for the collection with Milvus's own tools, the
search mode is `fast`: more candidates than needed are fetched, and are ranked by exact distance.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import TypeVar

from index import errors, records
from index.duplicates import NearImage
from index.filters import Where
from index.interface import Outcomes, Update
from index.milvus import schema
from index.milvus.filters import fields_of
from index.milvus.reader import MilvusReader
from index.milvus.upsert import Upsert

T = TypeVar("T")
_DELETE_BATCH = 500
_CHANGED_ROWS = 100  # with pictures and vectors, about 5 MB


class MilvusImageIndex(MilvusReader):
    """The collections on Milvus whose names start with `name`. Open it with `open`.

    `ImageIndex` describes the arguments and errors of the methods. They all raise IndexUnreachableError too.
    """

    def add_many(self, images: Sequence[records.NewImage]) -> Outcomes:
        """Add or replace all of `images`, or none of them if one is rejected.

        More than 128 images are written with several calls; if one call fails, the images of the earlier calls stay.
        Also raises IndexLimitError for a picture that is too large.
        """
        # The index may have switched since these images were embedded: name the model of their vectors.
        labeled = [each if each.vectors else replace(each, vectors={self._opened: each.vector}) for each in images]
        entries = self._encode(labeled)
        pictures = [schema.picture_fields(entry.key, entry.picture) for entry in entries]
        ids = sorted({schema.id_of(entry.key) for entry in entries})

        def add(model: records.VectorModel) -> Outcomes:
            if entries and model.fingerprint not in entries[0].vectors:
                raise errors.IndexSwitchedError(self._milvus.uri, f"{entries[0].key!r} was embedded for another model")
            collection = self.spaces.collection(model)
            upsert = Upsert(self._milvus.rows(collection, ids, schema.STATE))
            for entry, picture in zip(entries, pictures, strict=True):
                upsert.add(entry, picture)
            upsert.keep_pictures(
                self._milvus.rows(collection, list(upsert.kept_pictures), ["id", "has_picture", "picture"])
            )
            self._registry.add_fields(
                set().union(*(fields_of(json.loads(row["metadata"])) for row in upsert.rows.values()))
            )
            self._milvus.write(collection, upsert.rows_for(model.fingerprint))
            return upsert.outcomes

        return self._change(add)

    def delete(self, key: str) -> None:
        """Delete one image; no later search finds it. Raises InvalidKeyError, KeyNotFoundError, IndexReadOnlyError."""
        row_id = schema.id_of(records.check_key(key))
        if not self._delete([row_id]):
            raise errors.KeyNotFoundError(key)

    def delete_where(self, where: Where, *, stopped: Callable[[], bool] = lambda: False) -> int:
        """Delete the images that match now, with one call for each 500, and return how many were deleted."""
        self._check_writable()
        condition, deleted = self._registry.expression(where), 0
        for rows in self._milvus.pages(self._collection(), ["id"], size=_DELETE_BATCH, where=condition):
            if stopped():
                break
            deleted += self._delete([row["id"] for row in rows])
        return deleted

    def change_metadata(self, key: str, update: Update) -> records.ImageRecord:
        """Replace an image's metadata by `update(metadata)`; another replica's change may be lost."""

        def change(model: records.VectorModel) -> records.ImageRecord:
            row = self._row(key, schema.WHOLE, model)
            self._update([row], update, model)
            return schema.record_of(row)

        return self._change(change)

    def change_keys(self, keys: Sequence[str], update: Update) -> records.MetadataChanges:
        """Replace the metadata of these images, unless a key is unknown; another replica's change may be lost.

        If Milvus fails in the middle, some images are changed.
        """
        ids = [schema.id_of(records.check_key(key)) for key in dict.fromkeys(keys)]
        known = self._milvus.rows(self._collection(), ids, ["id"])
        if unknown := next((each for each in ids if each not in known), None):
            raise errors.KeyNotFoundError(schema.key_of(unknown))
        return self._change_ids(
            [ids[start : start + _CHANGED_ROWS] for start in range(0, len(ids), _CHANGED_ROWS)], update
        )

    def change_matching(
        self, where: Where, update: Update, *, stopped: Callable[[], bool] = lambda: False
    ) -> records.MetadataChanges:
        """Replace the metadata of the images that match now; another replica's change may be lost."""
        self._check_writable()
        pages = self._milvus.pages(
            self._collection(), ["id"], size=_CHANGED_ROWS, where=self._registry.expression(where)
        )
        return self._change_ids(([row["id"] for row in rows] for rows in pages), update, stopped)

    def _change_ids(
        self, batches: Iterable[Sequence[str]], update: Update, stopped: Callable[[], bool] = lambda: False
    ) -> records.MetadataChanges:
        """Replace the metadata of the rows with these ids that still exist."""
        matched = changed = 0
        for ids in batches:
            if stopped():
                break

            def change(model: records.VectorModel, ids: Sequence[str] = ids) -> tuple[int, int]:
                rows = [*self._milvus.rows(self.spaces.collection(model), ids, schema.WHOLE).values()]
                return len(rows), self._update(rows, update, model)

            found, different = self._change(change)
            matched, changed = matched + found, changed + different
        return records.MetadataChanges(matched, changed)

    def _update(self, rows: Sequence[schema.Row], update: Update, model: records.VectorModel) -> int:
        """Replace the metadata of complete rows, write those that are different, and return how many these are."""
        changed = []
        for row in rows:
            metadata = records.encode_metadata(update(json.loads(row["metadata"])))
            if metadata != row["metadata"]:
                self._registry.add_fields(fields_of(json.loads(metadata)))
                row.update(schema.searchable(metadata), updated=records.now())
                changed.append(row)
        if changed:
            self._milvus.write(self.spaces.collection(model), changed)
        return len(changed)

    def _delete_if_unchanged(self, pairs: Sequence[tuple[NearImage, NearImage]]) -> int:
        """Delete the first image of each pair if both still have the same bytes."""
        self._check_writable()
        ids = sorted({schema.id_of(image.key) for pair in pairs for image in pair})
        stored = self._milvus.rows(self._collection(), ids, ["id", "sha256"])
        current = {schema.key_of(row["id"]): row["sha256"] for row in stored.values()}
        unchanged = [
            schema.id_of(image.key)
            for image, kept in pairs
            if current.get(image.key) == image.sha256 and current.get(kept.key) == kept.sha256
        ]
        return self._delete(unchanged)

    def _delete(self, ids: Sequence[str]) -> int:
        """Delete those of these rows that exist, and return how many these were."""
        deleted: set[str] = set()

        def delete(model: records.VectorModel) -> int:
            found = self._milvus.rows(self.spaces.collection(model), ids, ["id"])
            self._milvus.delete(self.spaces.collection(model), list(found))
            deleted.update(found)  # also those that were deleted before the index switched
            return len(deleted)

        return self._change(delete)

    def _change(self, change: Callable[[records.VectorModel], T]) -> T:
        """Make a change of the searched model's collection; make it again if the index switched meanwhile."""
        self._check_writable()
        while True:
            started = time.monotonic()
            model = self.spaces.wait_until_writable()
            with self._writing:
                result = change(model)
            if self.spaces.confirm(model, started):
                return result

    def _check_writable(self) -> None:
        if self._read_only:
            raise errors.IndexReadOnlyError(self._milvus.uri, "it was opened for reading only")
