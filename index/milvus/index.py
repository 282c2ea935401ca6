"""The index on Milvus: the same interface, shared by every replica of the service that names the same address.

Promises: an add or delete that returned is in Milvus, and every later search of every replica sees it; an image is one
row, and changes whole; answers (distances, order, filters) are those of the index of one machine; vectors of two models
are never compared, each model's are a collection of their own.
Does not: make a call of several images atomic when Milvus fails in the middle of it (some are stored, each one whole,
and sending it again is safe); keep two replicas that change the same image at the same moment from undoing one another
(the later change stays); list images in the order of their adding (by key instead, which no replica can disagree on).

Milvus finds the candidates; distances are computed here, from the stored vectors, so that they are exact and equal
distances are ordered by key. An index of the collection other than FLAT, made with Milvus's own tools, is the mode
`fast`: its candidates are more than were asked for, and ranked by exact distance.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from index.cursor import make_cursor, read_cursor
from index.errors import (
    IndexLimitError,
    IndexReadOnlyError,
    IndexSwitchedError,
    KeyNotFoundError,
    MilvusUnsupportedError,
    ModeUnavailableError,
    PictureNotFoundError,
)
from index.filters import Where
from index.interface import Answers, Neighbours, Outcomes, Pairs, Update
from index.milvus.client import Milvus
from index.milvus.filters import fields_of
from index.milvus.schema import (
    MOST_ROWS,
    RECORD,
    STATE,
    WHOLE,
    Row,
    id_of,
    is_id,
    key_of,
    picture_fields,
    picture_of,
    record_of,
    searchable,
    vector_of,
)
from index.milvus.search import MOST_NEAREST, near_pairs_of, nearest
from index.milvus.spaces import Rooms, stats_of
from index.milvus.upsert import Change, now
from index.records import (
    ImageRecord,
    IndexStats,
    NewImage,
    Page,
    SnapshotManifest,
    Space,
    VectorModel,
    check_key,
    encode_metadata,
    encode_vectors,
)
from index.search.searcher import Mode

_WRITTEN_AT_ONCE = 128
_DELETED_AT_ONCE = 500


class MilvusImageIndex:
    """The collections on Milvus whose names begin with `name`. Open it with `open`."""

    def __init__(self, milvus: Milvus, spaces: Rooms, *, keep_pictures: bool, read_only: bool) -> None:
        """For `open`, which knows how these parts are put together."""
        self._milvus, self._spaces, self._meta = milvus, spaces, spaces.meta
        self._keep_pictures, self._read_only = keep_pictures, read_only
        self._writing = threading.Lock()  # to read a row and write it again, with no other thread in between

    @classmethod
    def open(
        cls,
        uri: str,
        token: str | None,
        *,
        fingerprint: str,
        model: str,
        name: str = "fc7",
        timeout_s: float = 5.0,
        keep_pictures: bool = True,
        switch: bool = False,
        follow: bool = False,
        read_only: bool = False,
    ) -> MilvusImageIndex:
        """Open the index `name` for the model with this `fingerprint`; made when missing.

        uri, token, name, timeout_s: as in `index.factory.open_index`. The others: as of LocalImageIndex.open, but
        with `switch` only images that have a vector of this model stay in the index, and `follow` waits for
        `fc7 index reembed` to make the vectors (`advance`).
        Raises IndexUriError, MissingExtraError, IndexUnreachableError, IndexModelError when the vectors are of another
        model, IndexUnavailableError when there is none to read.
        """
        milvus = Milvus(uri, token, timeout_s)
        try:
            spaces = Rooms(milvus, name, read_only=read_only)
            spaces.open(VectorModel(fingerprint, model), switch=switch, follow=follow)
        except BaseException:
            milvus.close()
            raise
        return cls(milvus, spaces, keep_pictures=keep_pictures, read_only=read_only)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish the change that is under way and let the connection go."""
        with self._writing:
            self._milvus.close()

    @property
    def trouble(self) -> str:
        """Why Milvus did not do what was asked last, "" when it did."""
        return self._milvus.trouble

    # --- models -------------------------------------------------------------------------------------------------------

    @property
    def searched(self) -> VectorModel:
        """The model whose vectors search compares."""
        return self._spaces.searched

    @property
    def target(self) -> VectorModel | None:
        """The model that the index is to go over to, or None."""
        return self._spaces.target

    @property
    def wanted(self) -> Sequence[VectorModel]:
        """The models of which an image that is added is to have a vector, the searched one first."""
        return self._spaces.wanted

    def start_migration(self, model: VectorModel) -> bool:
        """Go over to this model: at once (True) when all its vectors are made, else at an `advance`."""
        return self._spaces.start_migration(model)

    def advance(self) -> bool:
        """Go over to the model that is followed, if `fc7 index reembed` has made all its vectors; tell whether."""
        with self._writing:
            return self._spaces.advance()

    def describe(self) -> Sequence[Space]:
        """Return the vectors that there are, by model, the searched ones first."""
        return self._meta.spaces()

    # --- images -------------------------------------------------------------------------------------------------------

    def add_many(self, images: Sequence[NewImage]) -> Outcomes:
        """Add or replace all of `images`, or none of them when one is refused.

        As of LocalImageIndex.add_many; more than 128 go to Milvus in several calls, and when one of these fails, those
        before it stay. Raises IndexLimitError for a picture that is too large, IndexUnreachableError.
        """
        self._check_writable()
        own = self._spaces.searched.fingerprint
        names = list(images[0].vectors) if images and images[0].vectors else [own]
        encoded = {name: encode_vectors([image.vectors.get(name, image.vector) for image in images]) for name in names}
        keys = [check_key(image.sha256 if image.key is None else image.key) for image in images]
        texts = [None if image.metadata is None else encode_metadata(image.metadata) for image in images]
        pictures = [
            picture_fields(k, i.picture if self._keep_pictures else None) for k, i in zip(keys, images, strict=True)
        ]
        with self._writing:
            wanted = self.wanted
            if images and wanted[0].fingerprint not in encoded:
                raise IndexSwitchedError(self._milvus.place, f"{keys[0]!r} was embedded for the one before")
            collection = self._spaces.collection(wanted[0])
            ids = sorted({id_of(key) for key in keys})
            change = Change(self._milvus.rows(collection, ids, STATE))
            for model in wanted[1:]:
                there = self._milvus.rows(self._spaces.collection(model), ids, ["id", "sha256"])
                change.missing_vectors |= {
                    i for i, row in change.before.items() if there.get(i, {}).get("sha256") != row["sha256"]
                }
            for number, (key, image) in enumerate(zip(keys, images, strict=True)):
                change.add(number, key, image, texts[number], pictures[number])
            change.keep_pictures(
                self._milvus.rows(collection, change.without_picture(), ["id", "has_picture", "picture"])
            )
            self._meta.note_fields(
                set().union(*(fields_of(json.loads(row["metadata"])) for row in change.rows.values()))
            )
            for model in reversed(wanted):  # the searched one last: what search finds is everywhere
                if model.fingerprint in encoded:
                    rows = change.rows_with(encoded[model.fingerprint])
                    for start in range(0, len(rows), _WRITTEN_AT_ONCE):
                        self._milvus.write(self._spaces.collection(model), rows[start : start + _WRITTEN_AT_ONCE])
        return change.outcomes

    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """Return {key: sha256} of those among `keys` that have a vector wherever one is wanted."""
        ids = [id_of(check_key(key)) for key in keys]
        found: dict[str, str] | None = None
        for model in self.wanted:
            rows = self._milvus.rows(self._spaces.collection(model), ids, ["id", "sha256"])
            here = {key_of(row["id"]): str(row["sha256"]) for row in rows.values()}
            found = here if found is None else {key: sha for key, sha in found.items() if here.get(key) == sha}
        return found or {}

    def get(self, key: str) -> ImageRecord:
        """Return one image's record. Raises InvalidKeyError, KeyNotFoundError."""
        return record_of(self._row(key, RECORD))

    def contains(self, key: str) -> bool:
        """Tell whether an image has this key. Raises InvalidKeyError."""
        return bool(self._milvus.rows(self._spaces.collection(), [id_of(check_key(key))], ["id"]))

    def picture(self, key: str) -> bytes:
        """Return the stored 256x256 JPEG. Raises InvalidKeyError, KeyNotFoundError, PictureNotFoundError."""
        picture = picture_of(self._row(key, ["id", "has_picture", "picture"]))
        if picture is None:
            raise PictureNotFoundError(key)
        return picture

    def list(self, limit: int = 100, cursor: str | None = None, *, where: Where | None = None) -> Page:
        """Return up to `limit` images that fit, by key, after the page that gave `cursor`.

        An image that is there, and fits, throughout a listing is in it once, whatever comes and goes.
        Raises CursorError, FilterError, ValueError unless limit >= 1.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}, not at least 1")
        limit = min(limit, MOST_ROWS - 1)
        after = "" if cursor is None else read_cursor(cursor, self._meta.identity, where, str, is_id)
        condition = self._meta.expression(where)
        rows = self._milvus.page(self._spaces.collection(), RECORD, after=after, limit=limit + 1, where=condition)
        following = make_cursor(self._meta.identity, where, rows[limit - 1]["id"]) if len(rows) > limit else None
        return Page([record_of(row) for row in rows[:limit]], following)

    def delete(self, key: str) -> None:
        """Delete one image; no later search finds it. Raises InvalidKeyError, KeyNotFoundError, IndexReadOnlyError."""
        self._check_writable()
        with self._writing:
            self._delete([self._row(key, ["id"])["id"]])

    def delete_where(self, where: Where) -> int:
        """Delete the images that fit now, and return how many; no later search finds them.

        Each one goes whole or stays; one that is changed meanwhile, either. Raises FilterError, IndexReadOnlyError.
        """
        self._check_writable()
        condition, deleted = self._meta.expression(where), 0
        for rows in self._milvus.pages(self._spaces.collection(), ["id"], size=_DELETED_AT_ONCE, where=condition):
            with self._writing:
                self._delete([row["id"] for row in rows])
            deleted += len(rows)
        return deleted

    def change_metadata(self, key: str, update: Update) -> ImageRecord:
        """Replace an image's metadata by `update` of it, with no other change of this process in between.

        Raises InvalidKeyError, KeyNotFoundError, MetadataError, and what `update` raises.
        """
        self._check_writable()
        with self._writing:
            row = self._row(key, WHOLE)
            metadata = encode_metadata(update(json.loads(row["metadata"])))
            if metadata != row["metadata"]:
                change = searchable(metadata) | {"updated": now()}
                self._meta.note_fields(fields_of(json.loads(metadata)))
                for model in reversed(self.wanted):
                    whole = self._milvus.rows(self._spaces.collection(model), [row["id"]], WHOLE)
                    self._milvus.write(self._spaces.collection(model), [dict(each) | change for each in whole.values()])
                row |= change
        return record_of(row)

    # --- search -------------------------------------------------------------------------------------------------------

    def search(
        self,
        vectors: NDArray[np.float32],
        k: int,
        *,
        exclude: str | None = None,
        where: Where | None = None,
        fingerprint: str | None = None,
        mode: Mode | None = None,
    ) -> Answers:
        """Return the `k` nearest images of each vector, nearest first; fewer when there are not so many.

        As of LocalImageIndex.search. Raises IndexLimitError for a `k` above 2,000.
        """
        model = self._spaces.model(fingerprint)
        queries = encode_vectors(vectors)
        if exclude is not None:
            self._row(exclude, ["id"])
        return self._nearest(model, queries, k, exclude=exclude, where=where, mode=mode)

    def similar(self, key: str, k: int, *, where: Where | None = None, mode: Mode | None = None) -> Neighbours:
        """Return the `k` images that fit and are nearest to an indexed one, itself left out.

        Raises InvalidKeyError, KeyNotFoundError, FilterError, ModeUnavailableError.
        """
        model = self._spaces.searched
        query = vector_of(self._row(key, ["id", "vector"], model))
        return self._nearest(model, query[np.newaxis], k, exclude=key, where=where, mode=mode)[0]

    def _nearest(
        self,
        model: VectorModel,
        queries: NDArray[np.float16],
        k: int,
        *,
        exclude: str | None,
        where: Where | None,
        mode: Mode | None,
    ) -> Answers:
        if k < 1:
            raise ValueError(f"k is {k}, not at least 1")
        if k > MOST_NEAREST:
            raise IndexLimitError(f"k is {k:,}", MOST_NEAREST)
        self.mode(mode, fingerprint=model.fingerprint)
        parts = [self._meta.expression(where)] + ([] if exclude is None else [f'id != "{id_of(check_key(exclude))}"'])
        condition = " and ".join(part for part in parts if part)
        collection = self._spaces.collection(model)
        kind = self._milvus.index_type(collection)
        return nearest(self._milvus, collection, queries, k, where=condition, index_type=kind)

    def mode(self, asked: Mode | None = None, *, fingerprint: str | None = None) -> Mode:
        """Return how a search that asks for this mode is done now, among the vectors of a model.

        `exact` while the collection's index is FLAT, whatever is asked; else `fast`, and `exact` is not to be had.
        Raises ModeUnavailableError, IndexModelError.
        """
        model = self._spaces.model(fingerprint)
        kind = self._milvus.index_type(self._spaces.collection(model))
        if asked == "codes":
            raise ModeUnavailableError("codes", model.model, reason="An index on Milvus has no binary codes")
        if asked == "exact" and kind != "FLAT":
            raise ModeUnavailableError(
                "exact", model.model, reason=f"The collection's index on Milvus is {kind}, not FLAT"
            )
        return "exact" if kind == "FLAT" else "fast"

    def duplicates(
        self,
        threshold: float,
        limit: int,
        *,
        where: Where | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Pairs:
        """Return the nearest `limit` pairs of images that fit and are at most `threshold` apart, nearest first.

        The vectors of all images that fit come here for it. stopped: asked again and again; when true, the pairs found
        so far are returned. Raises FilterError, IndexLimitError for more than 100,000 images.
        """
        condition = self._meta.expression(where)
        return near_pairs_of(self._milvus, self._spaces.collection(), condition, threshold, limit, stopped=stopped)

    # --- the whole ----------------------------------------------------------------------------------------------------

    def snapshot(self, target: Path) -> SnapshotManifest:
        """Raise MilvusUnsupportedError: Milvus has a tool of its own for it."""
        del target
        raise MilvusUnsupportedError(
            self._milvus.place,
            "no snapshot of it can be taken here",
            "Use Milvus's own: milvus-backup create -n NAME, of the index's collections",
        )

    def stats(self) -> IndexStats:
        """Return counts; the sizes are Milvus's own to know, and 0 here."""
        model = self._spaces.searched
        return stats_of(model, self._milvus.count(self._spaces.collection(model)), self.mode())

    def _row(self, key: str, fields: Sequence[str], model: VectorModel | None = None) -> Row:
        """Return an image's row. Raises InvalidKeyError, KeyNotFoundError."""
        row_id = id_of(check_key(key))
        row = self._milvus.rows(self._spaces.collection(model), [row_id], fields).get(row_id)
        if row is None:
            raise KeyNotFoundError(key)
        return row

    def _delete(self, ids: Sequence[str]) -> None:
        for model in reversed(self.wanted):
            self._milvus.delete(self._spaces.collection(model), ids)

    def _check_writable(self) -> None:
        if self._read_only:
            raise IndexReadOnlyError(self._milvus.place, "it was opened for reading only")
