"""Open and read the collections of an index on Milvus: images, lists, searches and counts."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from index import errors, records
from index.cursor import Listing, Order, make_cursor, read_cursor
from index.duplicates import Duplicates
from index.facets import Facets
from index.filters import Where, has_field, parse_field
from index.interface import (
    MAX_LISTED,
    Answers,
    ImageIndex,
    Neighbours,
    SearchOptions,
    Stopped,
    Vectors,
    check_at_least_one,
    keys_of,
)
from index.labels import LabelledVectors
from index.milvus import points, schema
from index.milvus.client import Milvus
from index.milvus.listing import count_fields, is_position, read_page
from index.milvus.search import MAX_K, find_duplicates, resolve_mode, search
from index.milvus.spaces import Spaces, stats_of
from index.points import Points
from index.search.searcher import Mode
from model_store.image import PREPARATION
from model_store.novelty.reference import Reference


class MilvusReader(ImageIndex):
    """What does not change the collections. `MilvusImageIndex` has the rest.

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
    def open(cls, address: records.MilvusAddress, options: records.IndexOptions) -> Self:
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

    def vectors(self, keys: Sequence[str], *, fingerprint: str | None = None) -> Vectors:
        """Return {key: float16 [4096]} of these images."""
        collection = self.spaces.collection(self.spaces.model(fingerprint))
        ids = {key: schema.id_of(records.check_key(key)) for key in keys}
        rows = self._milvus.rows(collection, list(ids.values()), ["id", "vector"])
        for key, row_id in ids.items():
            if row_id not in rows:
                raise errors.KeyNotFoundError(key)
        return {key: schema.vector_of(rows[row_id]) for key, row_id in ids.items()}

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

    def by_novelty(
        self,
        reference: Reference,
        listing: Listing,
        limit: int,
        cursor: str | None,
        *,
        fingerprint: str,
        stopped: Stopped,
    ) -> records.Page:
        """Raise MilvusUnsupportedError: it would have to fetch all vectors."""
        del reference, limit, cursor, fingerprint, stopped
        what = f"images cannot be listed with order={listing.order}"
        raise errors.MilvusUnsupportedError(self._milvus.uri, what, "Use another order, such as key or random.")

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

    def count(self, where: Where) -> int:
        """Return the number of images that match."""
        return self._milvus.count(self._collection(), self._registry.expression(where))

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
        path, collection = parse_field(field), self.spaces.collection(self.spaces.model(fingerprint))
        condition = self._registry.expression(has_field(path, where) if only_labelled else where)
        return points.read_labelled(self._milvus, collection, path, condition)

    def points(self, field: str, *, where: Where | None = None) -> Iterator[Points]:
        """Yield the matching images, ordered by key."""
        return points.read(self._milvus, self._collection(), parse_field(field), self._registry.expression(where))

    def existing_vectors(self, keys: Sequence[str]) -> Vectors:
        """Return {key: float16 [4096]} of those `keys` that exist."""
        return points.read_vectors(self._milvus, self._collection(), keys)

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
        collection = self.spaces.collection(model := self.spaces.model(None))
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

    def _collection(self) -> str:
        """Return the searched collection, after following a switch of another process."""
        self.spaces.refresh()
        return self.spaces.collection()
