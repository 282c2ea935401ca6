"""The index that the service and the command line use: images in, neighbours out.

Promises: an add or delete that returned is on disk, and every later search sees it; any method may be called from any
thread at any time; vectors of two models are never compared; one process writes, the second is refused by name.
Does not: make vectors or pictures (model_store does), go beyond one machine.

Vectors are rounded to float16 when they come in, and so is a query: an indexed image's own vector is at distance 0.
Equal distances are ordered by key.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from index.backup import SnapshotManifest, take_snapshot
from index.catalog import Catalog
from index.changes import Change, Entry
from index.errors import IndexModelError
from index.frozen import Frozen
from index.interface import Answers, ImageIndex, Neighbours, Outcomes, Update
from index.lock import FolderLock, check_exists
from index.records import (
    AddOutcome,
    ImageRecord,
    IndexStats,
    Neighbour,
    NewImage,
    Page,
    Space,
    check_key,
    encode_metadata,
    encode_vectors,
)
from index.searcher import ExactSearcher, Hits, View, restrict
from index.snapshot import load, write_snapshot
from index.where import Where

__all__ = ["AddOutcome", "ImageIndex", "ImageRecord", "IndexStats", "LocalImageIndex", "Neighbour", "NewImage", "Page"]

SNAPSHOT_AFTER = 1024
_FILTERS_KEPT = 64


class LocalImageIndex:
    """The index in the folder `home`/index: a catalogue on disk, a searcher in memory. Open it with `open`."""

    def __init__(
        self,
        folder: Path,
        catalog: Catalog,
        space: Space,
        searcher: ExactSearcher,
        lock: FolderLock | None,
        *,
        keep_pictures: bool,
        snapshot_after: int,
        unsaved: int,
    ) -> None:
        """For `open`, which knows how these parts are put together."""
        self._folder, self._catalog, self._space, self._searcher, self._lock = folder, catalog, space, searcher, lock
        self._keep_pictures, self._snapshot_after, self._unsaved = keep_pictures, snapshot_after, unsaved
        self._closed = False
        self._filters: dict[Where, NDArray[np.int64]] = {}
        self._filters_of = -1
        self._filters_lock = threading.Lock()

    @classmethod
    def open(
        cls,
        home: Path,
        *,
        fingerprint: str,
        model: str,
        keep_pictures: bool = True,
        switch: bool = False,
        read_only: bool = False,
        threads: int | None = None,
        snapshot_after: int = SNAPSHOT_AFTER,
    ) -> LocalImageIndex:
        """Open the index of `home` for the model with this `fingerprint`; made when missing.

        model: its name to show, such as "solar:1". keep_pictures: store the prepared pictures of what is added.
        switch: make this model the index's own even though images lack vectors of it; search does not find those until
        they are added again. read_only: take no lock, refuse writes, see what is there now and nothing that comes
        later. threads: cores for one search, all of this process's by default. snapshot_after: how many vectors must
        have come or gone before closing writes the searcher's snapshot anew.
        Raises IndexModelError when the vectors are of another model, IndexLockedError, IndexCorruptError,
        IndexFormatError, IndexReadOnlyError, IndexFullError, IndexUnavailableError.
        """
        folder = home / "index"
        with contextlib.ExitStack() as stack:
            lock = None
            if not read_only:
                lock = FolderLock(folder)
                stack.callback(lock.close)
            else:
                check_exists(folder)
            catalog = stack.enter_context(Catalog(folder / "catalog.db", read_only=read_only))
            space = _enter(catalog, folder, fingerprint, model, switch=switch, read_only=read_only)
            searcher = ExactSearcher(threads=threads or len(os.sched_getaffinity(0)))
            stack.callback(searcher.close)
            unsaved = load(searcher, catalog, space.id, folder / "vectors.snapshot", fingerprint)
            stack.pop_all()
        return cls(
            folder,
            catalog,
            space,
            searcher,
            lock,
            keep_pictures=keep_pictures,
            snapshot_after=snapshot_after,
            unsaved=unsaved,
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Finish the writes that are queued, write the snapshot if much changed, and let the folder go."""
        if self._closed:
            return
        self._closed = True
        self._catalog.close()
        self._searcher.close()
        if self._lock is not None:
            if self._unsaved >= max(1, self._snapshot_after):
                # The snapshot is a convenience: without room for it the next start reads the catalogue.
                with contextlib.suppress(OSError):
                    path = self._folder / "vectors.snapshot"
                    write_snapshot(path, self._searcher, self._catalog.identity, self._space.fingerprint)
            self._lock.close()

    def add_many(self, images: Sequence[NewImage]) -> Outcomes:
        """Add or replace all of `images` in one transaction, or none of them when one is refused.

        The same key, bytes and metadata again change nothing. Returns what was done, in order.
        Raises InvalidKeyError, MetadataError, ShapeError, VectorError, IndexFullError, IndexReadOnlyError.
        """
        vectors = encode_vectors([image.vector for image in images])
        entries = [
            Entry(
                key=check_key(image.sha256 if image.key is None else image.key),
                sha256=image.sha256,
                size=image.size,
                width=image.width,
                height=image.height,
                metadata=None if image.metadata is None else encode_metadata(image.metadata),
                picture=image.picture if self._keep_pictures else None,
                vector=vector,
            )
            for image, vector in zip(images, vectors, strict=True)
        ]
        return self._catalog.add(self._space.id, entries, self._apply).outcomes

    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """Return {key: sha256} of those among `keys` that have a vector of this index's model."""
        return self._catalog.lookup(self._space.id, [check_key(key) for key in keys])

    def get(self, key: str) -> ImageRecord:
        """Return one image's record. Raises InvalidKeyError, KeyNotFoundError."""
        return self._catalog.get(check_key(key))

    def contains(self, key: str) -> bool:
        """Tell whether an image has this key. Raises InvalidKeyError."""
        return self._catalog.contains(check_key(key))

    def picture(self, key: str) -> bytes:
        """Return the stored 256x256 JPEG. Raises InvalidKeyError, KeyNotFoundError, PictureNotFoundError."""
        return self._catalog.picture(check_key(key))

    def list(self, limit: int = 100, cursor: str | None = None, *, where: Where | None = None) -> Page:
        """Return up to `limit` images that fit, in the order of their first adding, after the page that gave `cursor`.

        An image that is there, and fits, throughout a listing is in it once, whatever comes and goes.
        Raises CursorError, FilterError, ValueError unless limit >= 1.
        """
        if limit < 1:
            raise ValueError(f"limit is {limit}, not at least 1")
        return self._catalog.page(limit, cursor, where)

    def delete(self, key: str) -> None:
        """Delete one image; no later search finds it. Raises InvalidKeyError, KeyNotFoundError, IndexReadOnlyError."""
        self._catalog.delete(self._space.id, check_key(key), self._apply)

    def delete_where(self, where: Where) -> int:
        """Delete the images that fit now, and return how many; no later search finds them.

        Each one goes whole or stays; one that is changed meanwhile may stay. Raises FilterError, IndexReadOnlyError.
        """
        return self._catalog.delete_where(self._space.id, where, self._apply)

    def change_metadata(self, key: str, update: Update) -> ImageRecord:
        """Replace an image's metadata by `update` of it, with no other change in between.

        Raises InvalidKeyError, KeyNotFoundError, MetadataError, and what `update` raises.
        """
        self._catalog.change_metadata(check_key(key), update)
        return self._catalog.get(key)

    def search(
        self, vectors: NDArray[np.float32], k: int, *, exclude: str | None = None, where: Where | None = None
    ) -> Answers:
        """Return the `k` nearest images of each vector, nearest first; fewer when there are not so many.

        vectors: float32 [n, 4096]. exclude: the key of an image to leave out. where: compare the images that fit only.
        Raises ShapeError, VectorError, FilterError, KeyNotFoundError for `exclude`, ValueError unless k >= 1.
        """
        known = None if exclude is None else self._catalog.vector(self._space.id, check_key(exclude))
        return self._neighbours(encode_vectors(vectors), k, None if known is None else known[0], where)

    def similar(self, key: str, k: int, *, where: Where | None = None) -> Neighbours:
        """Return the `k` images that fit and are nearest to an indexed one, itself left out.

        Raises InvalidKeyError, KeyNotFoundError, FilterError, IndexModelError when the image has no vector of this
        model.
        """
        known = self._catalog.vector(self._space.id, check_key(key))
        if known is None:
            raise IndexModelError(self._folder, "an earlier model", self._space.model, 1)
        vector_id, vector = known
        return self._neighbours(vector[np.newaxis], k, vector_id, where)[0]

    def snapshot(self, target: Path) -> SnapshotManifest:
        """Copy the index, as it is now, into the new folder `target`, while others write.

        Raises TargetExistsError, IndexFullError, IndexReadOnlyError, IndexCorruptError.
        """
        return take_snapshot(self._folder.parent, target)

    def stats(self) -> IndexStats:
        """Return counts and sizes."""
        return IndexStats(
            images=self._catalog.images(),
            vectors=len(self._searcher),
            bytes_on_disk=_bytes_on_disk(self._folder),
            bytes_in_memory=self._searcher.bytes_in_memory,
            mode=self._searcher.mode,
            model=self._space.model,
            fingerprint=self._space.fingerprint,
        )

    def _apply(self, change: Change) -> None:
        """Bring the searcher up to what was committed; runs in the writer's thread."""
        if change.ids or change.removed:
            self._searcher.apply(change.ids, np.asarray(change.rows, np.float16), change.removed)
            self._unsaved += len(change.ids) + len(change.removed)

    def _neighbours(
        self, queries: NDArray[np.float16], k: int, left_out: int | None, where: Where | None = None
    ) -> Answers:
        if k < 1:
            raise ValueError(f"k is {k}, not at least 1")
        wanted = k + (left_out is not None)
        if where is None:
            hits = self._searcher.search(queries, wanted)
            found = _ids(hits)
            known = self._catalog.describe(found)
        if where is not None or len(known) < len(found):
            # A filter, or some that went while we searched: with the catalogue and the vectors of one moment.
            with self._catalog.frozen(self._searcher.view) as frozen:
                view = frozen.taken
                if where is not None:
                    view = restrict(view, self._fitting(frozen, where))
                hits = self._searcher.search(queries, wanted, view)
                known = frozen.describe(_ids(hits))
        answers = []
        for hit in hits:
            ranked = [
                (float(distance), *known[int(number)])
                for number, distance in zip(hit.ids, hit.distances, strict=True)
                if int(number) != left_out and int(number) in known
            ]
            answers.append([Neighbour(key, distance, json.loads(text)) for distance, key, text in sorted(ranked)[:k]])
        return answers

    def _fitting(self, frozen: Frozen[View], where: Where) -> NDArray[np.int64]:
        """Return the ids of the vectors whose images fit; kept until something is written."""
        if frozen.commits is None:
            return frozen.matching(self._space.id, where)
        with self._filters_lock:
            if self._filters_of != frozen.commits:
                self._filters.clear()
                self._filters_of = frozen.commits
            ids = self._filters.get(where)
        if ids is None:
            ids = frozen.matching(self._space.id, where)
            with self._filters_lock:
                if self._filters_of == frozen.commits and len(self._filters) < _FILTERS_KEPT:
                    self._filters[where] = ids
        return ids


def _ids(hits: list[Hits]) -> list[int]:
    return sorted({int(number) for hit in hits for number in hit.ids})


def read_stats(home: Path) -> IndexStats:
    """Return the counts of the index in `home` without opening it for search; another process may have it open.

    Raises IndexUnavailableError when there is none, IndexCorruptError, IndexFormatError.
    """
    folder = home / "index"
    check_exists(folder)
    with Catalog(folder / "catalog.db", read_only=True) as catalog:
        active = next((space for space in catalog.spaces() if space.active), None)
        return IndexStats(
            images=catalog.images(),
            vectors=active.vectors if active else 0,
            bytes_on_disk=_bytes_on_disk(folder),
            bytes_in_memory=0,
            mode=ExactSearcher.mode,
            model=active.model if active else "",
            fingerprint=active.fingerprint if active else "",
        )


def _enter(catalog: Catalog, folder: Path, fingerprint: str, model: str, *, switch: bool, read_only: bool) -> Space:
    """Return the space of this model, made the active one if it may be. Raises IndexModelError."""
    spaces = catalog.spaces()
    own = next((space for space in spaces if space.fingerprint == fingerprint), None)
    active = next((space for space in spaces if space.active), None)
    if own is not None and own.active:
        return own
    # Vectors of another model: fine to leave behind when every image has one of this model, too.
    images = catalog.images()
    lacking = own.lacking if own is not None else images
    if active is not None and active.vectors and lacking and not switch:
        raise IndexModelError(folder, active.model, model, lacking)
    if read_only:
        raise IndexModelError(folder, active.model if active else "none", model, lacking)
    catalog.activate_space(catalog.make_space(fingerprint, model))
    return next(space for space in catalog.spaces() if space.active)


def _bytes_on_disk(folder: Path) -> int:
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a file that was just replaced
            total += file.stat().st_size
    return total
