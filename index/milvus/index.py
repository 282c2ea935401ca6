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
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from index import errors, records
from index.cursor import Listing, Order, make_cursor, read_cursor
from index.duplicates import Duplicates, NearImage
from index.facets import Facets
from index.filters import Where, has_field, parse_field
from index.interface import (
    MAX_LISTED,
    Answers,
    ImageIndex,
    Neighbours,
    Outcomes,
    SearchOptions,
    Update,
    Vectors,
    check_at_least_one,
    keys_of,
)
from index.labels import LabelledVectors, value_at
from index.milvus import schema
from index.milvus.client import Milvus
from index.milvus.filters import fields_of
from index.milvus.listing import count_fields, is_position, read_page
from index.milvus.search import MAX_K, find_duplicates, resolve_mode, search
from index.milvus.spaces import Spaces, stats_of
from index.milvus.upsert import Upsert
from index.search.searcher import Mode
from model_store.image import PREPARATION

T = TypeVar("T")
_DELETE_BATCH = 500
_VECTOR_BATCH = 512  # 8 MB; Milvus sends 64 MB at most


class MilvusImageIndex(ImageIndex):
    """The collections on Milvus whose names start with `name`. Open it with `open`.

    `ImageIndex` describes the arguments and errors of the methods. They all raise IndexUnreachableError too.
    """

    spaces: Spaces

    def __init__(self, milvus: Milvus, spaces: Spaces, options: records.IndexOptions) -> None:
        """Use `open`; the constructor only stores its arguments."""
        super().__init__(spaces, keep_pictures=options.keep_pictures)
        self._milvus, self._registry = milvus, spaces.registry
        self._read_only, self._opened = options.read_only, options.fingerprint
        self._writing = threading.Lock()  # held while rows are read and written back

    @classmethod
    def open(cls, address: records.MilvusAddress, options: records.IndexOptions) -> MilvusImageIndex:
        """Open the index at `address`, and create it if it does not exist.

        With `switch`, the index of another model is replaced by an empty one. With `migrate`, search switches
        after `fc7 index reembed` has computed the vectors (`spaces.finish`).
        Raises IndexUriError, MissingExtraError, IndexUnreachableError, IndexModelError if the vectors are of another
        model, IndexUnavailableError if there is no index to read.
        """
        milvus = Milvus(address)
        try:
            spaces = Spaces(milvus, read_only=options.read_only)
            spaces.open(options)
        except BaseException:
            milvus.close()
            raise
        return cls(milvus, spaces, options)

    def close(self) -> None:
        """Finish the running change and close the connection."""
        with self._writing:
            self._milvus.close()

    @property
    def trouble(self) -> str:
        """Why the last call to Milvus failed; "" if it succeeded."""
        return self._milvus.trouble

    # --- images -------------------------------------------------------------------------------------------------------

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

    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """Return {key: sha256} of those `keys` that are complete (see `ImageIndex`). Raises InvalidKeyError."""
        ids = [schema.id_of(records.check_key(key)) for key in keys]
        rows = self._milvus.rows(self._collection(), ids, ["id", "sha256", "preparation"])
        return {
            schema.key_of(row["id"]): str(row["sha256"]) for row in rows.values() if row["preparation"] == PREPARATION
        }

    def get(self, key: str) -> records.ImageRecord:
        """Return one image's record. Raises InvalidKeyError, KeyNotFoundError."""
        return schema.record_of(self._row(key, schema.RECORD))

    def contains(self, key: str) -> bool:
        """Return whether an image has this key. Raises InvalidKeyError."""
        return bool(self._milvus.rows(self._collection(), [schema.id_of(records.check_key(key))], ["id"]))

    def picture(self, key: str) -> bytes:
        """Return the stored 256x256 JPEG. Raises InvalidKeyError, KeyNotFoundError, PictureNotFoundError."""
        picture = schema.picture_of(self._row(key, ["id", "has_picture", "picture"]))
        if picture is None:
            raise errors.PictureNotFoundError(key)
        return picture

    def list(
        self,
        limit: int = 100,
        cursor: str | None = None,
        *,
        where: Where | None = None,
        prefix: str = "",
        order: Order | None = None,
        seed: int = 0,
    ) -> records.Page:
        """Return up to `limit` matching images, by default by key, starting after `cursor`.

        Also raises IndexLimitError for more than 100,000 matching images, unless they are listed by key.
        """
        check_at_least_one("limit", limit)
        limit = min(limit, schema.MAX_ROWS - 1)
        listing, identity = Listing(where, prefix, order or "key", seed), self._registry.identity
        after = None
        if cursor is not None:
            after = read_cursor(cursor, identity, listing, lambda last: is_position(listing, last))
        condition = self._registry.expression(where)
        rows, last = read_page(self._milvus, self._collection(), listing, where=condition, after=after, limit=limit)
        next_cursor = None if last is None else make_cursor(identity, listing, last)
        return records.Page([schema.record_of(row) for row in rows], next_cursor)

    def vectors(self, keys: Sequence[str], *, fingerprint: str | None = None) -> Vectors:
        """Return {key: float16 [4096]} of these images."""
        collection = self.spaces.collection(self.spaces.model(fingerprint))
        ids = {key: schema.id_of(records.check_key(key)) for key in keys}
        rows = self._milvus.rows(collection, list(ids.values()), ["id", "vector"])
        for key, row_id in ids.items():
            if row_id not in rows:
                raise errors.KeyNotFoundError(key)
        return {key: schema.vector_of(rows[row_id]) for key, row_id in ids.items()}

    def fields(
        self,
        limit: int,
        *,
        where: Where | None = None,
        field: str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Facets:
        """Return the metadata fields of the matching images, with their most frequent values.

        Also raises IndexLimitError for more than 100,000 matching images.
        """
        check_at_least_one("limit", limit)
        condition = self._registry.expression(where)
        return count_fields(
            self._milvus, self._collection(), where=condition, limit=limit, field=field, stopped=stopped
        )

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
            metadata = records.encode_metadata(update(json.loads(row["metadata"])))
            if metadata != row["metadata"]:
                self._registry.add_fields(fields_of(json.loads(metadata)))
                row |= schema.searchable(metadata) | {"updated": records.now()}
                self._milvus.write(self.spaces.collection(model), [row])
            return schema.record_of(row)

        return self._change(change)

    # --- search -------------------------------------------------------------------------------------------------------

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        exclude: str | Sequence[str] = (),
        where: Where | None = None,
        fingerprint: str | None = None,
        mode: Mode | None = None,
        max_distance: float | None = None,
    ) -> Answers:
        """Return the `k` nearest images of each vector. Also raises IndexLimitError for a `k` above 2,000."""
        model = self.spaces.model(fingerprint)
        queries = records.encode_vectors(vectors)
        for key in keys_of(exclude):
            self._row(key, ["id"])
        options = SearchOptions(keys_of(exclude), where, mode, max_distance)
        return self._nearest(model, queries, k, options)

    def similar(
        self,
        key: str,
        k: int,
        *,
        where: Where | None = None,
        mode: Mode | None = None,
        max_distance: float | None = None,
    ) -> Neighbours:
        """Return the `k` matching images nearest to an indexed image, without that image itself."""
        model = self.spaces.model(None)
        query = schema.vector_of(self._row(key, ["id", "vector"], model))
        [neighbours] = self._nearest(model, query[np.newaxis], k, SearchOptions([key], where, mode, max_distance))
        return neighbours

    def labelled_vectors(
        self, field: str, *, only_labelled: bool = False, where: Where | None = None, fingerprint: str | None = None
    ) -> Iterator[LabelledVectors]:
        """Yield all matching images, ordered by key, with a metadata field and their vectors of the searched model."""
        path = parse_field(field)
        collection = self.spaces.collection(self.spaces.model(fingerprint))
        condition = self._registry.expression(has_field(path, where) if only_labelled else where)
        for rows in self._milvus.pages(collection, ["id", "metadata", "vector"], size=_VECTOR_BATCH, where=condition):
            yield LabelledVectors(
                [schema.key_of(row["id"]) for row in rows],
                [value_at(json.loads(row["metadata"]), path) for row in rows],
                np.stack([schema.vector_of(row) for row in rows]),
                [],
            )

    def mode(self, requested: Mode | None = None, *, fingerprint: str | None = None) -> Mode:
        """Return the mode that a search with the `requested` mode uses now, among the vectors of a model.

        A collection with a FLAT index is always searched in the mode `exact`, any other one in the mode `fast`.
        Raises ModeUnavailableError for `codes`, and for `exact` without a FLAT index; IndexModelError.
        """
        model = self.spaces.model(fingerprint)
        return resolve_mode(model, self._milvus.index_type(self.spaces.collection(model)), requested)

    def duplicates(
        self,
        threshold: float,
        limit: int,
        *,
        where: Where | None = None,
        images: int = MAX_LISTED,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Duplicates:
        """Return groups of matching images that are linked by pairs at most `threshold` apart, the largest first.

        Fetches the vectors of all matching images. Also raises IndexLimitError for more than 100,000 images.
        """
        condition = self._registry.expression(where)
        return find_duplicates(
            self._milvus, self._collection(), condition, threshold, limit, images=images, stopped=stopped
        )

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

    # --- the index as a whole -----------------------------------------------------------------------------------------

    def snapshot(self, target: Path) -> records.SnapshotManifest:
        """Raise MilvusUnsupportedError: Milvus has a tool of its own for this."""
        del target
        raise errors.MilvusUnsupportedError(
            self._milvus.uri,
            "fc7 cannot take a snapshot of it",
            "Back up its collections with Milvus's own tool: milvus-backup create -n NAME",
        )

    def stats(self) -> records.IndexStats:
        """Return counts. The sizes are 0, because only Milvus knows them."""
        model = self.spaces.model(None)
        collection = self.spaces.collection(model)
        outdated = self._milvus.count(collection, schema.OUTDATED)
        return stats_of(model, self._milvus.count(collection), self.mode(), outdated)

    def _nearest(
        self, model: records.VectorModel, queries: NDArray[np.float16], k: int, options: SearchOptions
    ) -> Answers:
        check_at_least_one("k", k)
        if k > MAX_K:
            raise errors.IndexLimitError(f"k is {k:,}", MAX_K)
        collection, condition = self.spaces.collection(model), self._registry.expression(options.where)
        return search(self._milvus, collection, queries, k, model=model, condition=condition, options=options)

    def _row(self, key: str, fields: Sequence[str], model: records.VectorModel | None = None) -> schema.Row:
        """Return an image's row. Raises InvalidKeyError, KeyNotFoundError."""
        row_id = schema.id_of(records.check_key(key))
        collection = self._collection() if model is None else self.spaces.collection(model)
        row = self._milvus.rows(collection, [row_id], fields).get(row_id)
        if row is None:
            raise errors.KeyNotFoundError(key)
        return row

    def _delete(self, ids: Sequence[str]) -> int:
        """Delete those of these rows that exist, and return how many these were."""
        deleted: set[str] = set()

        def delete(model: records.VectorModel) -> int:
            found = self._milvus.rows(self.spaces.collection(model), ids, ["id"])
            self._milvus.delete(self.spaces.collection(model), list(found))
            deleted.update(found)  # also those that were deleted before the index switched
            return len(deleted)

        return self._change(delete)

    def _collection(self) -> str:
        """Return the searched collection, after following a switch of another process."""
        self.spaces.refresh()
        return self.spaces.collection()

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
