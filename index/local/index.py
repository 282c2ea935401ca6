"""The index of one machine, in a folder: images in, neighbours out.

Promises: an add or delete that returned is on disk, and every later search sees it; any method may be called from any
thread at any time; vectors of two models are never compared; one process writes, the second is refused by name.
Does not: make vectors or pictures (model_store does), go beyond one machine (milvus.py does).

Vectors are rounded to float16 when they come in, and so is a query: an indexed image's own vector is at distance 0.
Equal distances are ordered by key.
"""

from __future__ import annotations

import contextlib
import json
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from index.catalog.backup import take_snapshot
from index.catalog.catalog import Catalog
from index.catalog.database import CATALOG_FILE
from index.catalog.images import Entry
from index.catalog.lock import FolderLock, check_exists
from index.catalog.read_view import ReadView
from index.errors import IndexModelError, IndexSwitchedError
from index.filters import Where
from index.interface import Answers, ImageIndex, Neighbours, Outcomes, Pairs, Update
from index.local.code_builder import CodeBuilder
from index.local.space import SearchSpace
from index.local.spaces import SNAPSHOT_FILE, Spaces
from index.local.vector_cache import write_snapshot
from index.records import (
    AddOutcome,
    ImageRecord,
    IndexStats,
    NearPair,
    Neighbour,
    NewImage,
    Page,
    SnapshotManifest,
    Space,
    VectorModel,
    check_key,
    encode_metadata,
    encode_vectors,
)
from index.search.duplicates import near_pairs
from index.search.searcher import Hits, Mode, View, restrict
from model_store.cores import usable_cores

__all__ = ["AddOutcome", "ImageIndex", "ImageRecord", "IndexStats", "LocalImageIndex", "Neighbour", "NewImage", "Page"]

SNAPSHOT_AFTER = 1024
_FILTERS_KEPT = 64


class LocalImageIndex:
    """The index in the folder `home`/index: a catalogue on disk, a searcher in memory. Open it with `open`."""

    def __init__(
        self,
        folder: Path,
        catalog: Catalog,
        spaces: Spaces,
        modes: CodeBuilder,
        lock: FolderLock | None,
        *,
        keep_pictures: bool,
        snapshot_after: int,
    ) -> None:
        """For `open`, which knows how these parts are put together."""
        self._folder, self._catalog, self._lock = folder, catalog, lock
        self.spaces, self._codes = spaces, modes
        self._keep_pictures, self._snapshot_after = keep_pictures, snapshot_after
        self._closed = False
        self._filters: dict[tuple[int, Where], NDArray[np.int64]] = {}
        self._filters_of = -1
        self._filters_lock = threading.Lock()

    @property
    def searched(self) -> VectorModel:
        """The model whose vectors search compares."""
        return _model_of(self.spaces.active)

    @property
    def wanted(self) -> Sequence[VectorModel]:
        """The models of which an image that is added is to have a vector, the searched one first."""
        return [_model_of(room) for room in self.spaces.wanted]

    def describe(self) -> Sequence[Space]:
        """Return the vectors on disk, by model, oldest first."""
        return self.spaces.describe()

    @classmethod
    def open(
        cls,
        home: Path,
        *,
        fingerprint: str,
        model: str,
        keep_pictures: bool = True,
        switch: bool = False,
        follow: bool = False,
        keep_spaces: bool = True,
        read_only: bool = False,
        threads: int | None = None,
        snapshot_after: int = SNAPSHOT_AFTER,
        fast_from: int | None = None,
    ) -> LocalImageIndex:
        """Open the index of `home` for the model with this `fingerprint`; made when missing.

        model: its name to show, such as "solar:1". keep_pictures: store the prepared pictures of what is added.
        switch: make this model the index's own even though images lack vectors of it; search does not find those until
        they are added again. follow: where images lack vectors of this model, search with the one before, and go over
        when they have them (`spaces`). keep_spaces: what was searched before is kept, to go back to. read_only: take no
        lock, refuse writes, see what is there now and nothing that comes later. threads: cores for one search, all of
        this process's by default. snapshot_after: how many vectors must have come or gone before closing writes the
        searcher's snapshot anew. fast_from: from how many vectors on a short code is learned for the mode `fast`, in
        the background; None never learns one.
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
            catalog = stack.enter_context(Catalog(folder / CATALOG_FILE, read_only=read_only))
            cores = threads or usable_cores()
            modes = CodeBuilder(folder, fast_from=fast_from, read_only=read_only)
            stack.callback(modes.close)
            spaces = Spaces(folder, catalog, modes, threads=cores, keep=keep_spaces)
            stack.callback(spaces.close)
            spaces.open(fingerprint, model, switch=switch, follow=follow, read_only=read_only)
            stack.pop_all()
        return cls(folder, catalog, spaces, modes, lock, keep_pictures=keep_pictures, snapshot_after=snapshot_after)

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
        self._codes.close()
        self.spaces.close()
        if self._lock is not None:
            room = self.spaces.active
            if room.unsaved >= max(1, self._snapshot_after):
                # The snapshot is a convenience: without room for it the next start reads the catalogue.
                with contextlib.suppress(OSError):
                    path = self._folder / SNAPSHOT_FILE
                    write_snapshot(path, room.searcher, self._catalog.identity, room.space.fingerprint)
            self._lock.close()

    def add_many(self, images: Sequence[NewImage]) -> Outcomes:
        """Add or replace all of `images` in one transaction, or none of them when one is refused.

        The same key, bytes and metadata again change nothing. Returns what was done, in order.
        Raises InvalidKeyError, MetadataError, ShapeError, VectorError, IndexFullError, IndexReadOnlyError,
        IndexSwitchedError when the index is one of another model by now.
        """
        own = self.spaces.active.space.fingerprint
        names = list(images[0].vectors) if images and images[0].vectors else [own]
        encoded = {name: encode_vectors([image.vectors.get(name, image.vector) for image in images]) for name in names}
        entries = [
            Entry(
                key=check_key(image.sha256 if image.key is None else image.key),
                sha256=image.sha256,
                size=image.size,
                width=image.width,
                height=image.height,
                metadata=None if image.metadata is None else encode_metadata(image.metadata),
                picture=image.picture if self._keep_pictures else None,
                vectors={name: rows[number] for name, rows in encoded.items()},
            )
            for number, image in enumerate(images)
        ]
        return self._catalog.add(entries, self.spaces.apply).outcomes

    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """Return {key: sha256} of those among `keys` that have a vector wherever one is wanted."""
        wanted = [room.space.id for room in self.spaces.wanted]
        return self._catalog.lookup(wanted, [check_key(key) for key in keys])

    def get(self, key: str) -> ImageRecord:
        """Return one image's record. Raises InvalidKeyError, KeyNotFoundError."""
        return self._catalog.get(check_key(key))

    def vectors(self, keys: Sequence[str]) -> dict[str, NDArray[np.float16]]:
        """Return {key: float16 [4096]} of those among `keys` that have a vector of this model. Raises as `get` does."""
        found = {key: self._catalog.vector(self.spaces.active.space.id, check_key(key)) for key in keys}
        return {key: known[1] for key, known in found.items() if known is not None}

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
        self._catalog.delete(check_key(key), self.spaces.apply)

    def delete_where(self, where: Where) -> int:
        """Delete the images that fit now, and return how many; no later search finds them.

        Each one goes whole or stays; one that is changed meanwhile may stay. Raises FilterError, IndexReadOnlyError.
        """
        return self._catalog.delete_where(where, self.spaces.apply)

    def change_metadata(self, key: str, update: Update) -> ImageRecord:
        """Replace an image's metadata by `update` of it, with no other change in between.

        Raises InvalidKeyError, KeyNotFoundError, MetadataError, and what `update` raises.
        """
        self._catalog.change_metadata(check_key(key), update)
        return self._catalog.get(key)

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

        vectors: float32 [n, 4096]. exclude: the key of an image to leave out. where: compare the images that fit only.
        fingerprint: of the model that made `vectors`, the index's own by default. mode: as in `mode`.
        Raises ShapeError, VectorError, FilterError, KeyNotFoundError for `exclude`, IndexModelError when images have
        no vectors of that model, ModeUnavailableError, ValueError unless k >= 1.
        """
        room = self.spaces.room(fingerprint)
        known = None if exclude is None else self._catalog.vector(room.space.id, check_key(exclude))
        left_out = None if known is None else known[0]
        return self._neighbours(
            room, encode_vectors(vectors), k, left_out=left_out, where=where, mode=self._codes.resolve_mode(room, mode)
        )

    def similar(self, key: str, k: int, *, where: Where | None = None, mode: Mode | None = None) -> Neighbours:
        """Return the `k` images that fit and are nearest to an indexed one, itself left out.

        Raises InvalidKeyError, KeyNotFoundError, FilterError, ModeUnavailableError, IndexModelError when the image has
        no vector of this model.
        """
        while True:
            room = self.spaces.active
            known = self._catalog.vector(room.space.id, check_key(key))
            if known is None and self.spaces.holds(room):
                raise IndexModelError(self._folder, "an earlier model", room.space.model, 1)
            if known is not None:
                vector_id, vector = known
                mode = self._codes.resolve_mode(room, mode)
                with contextlib.suppress(IndexSwitchedError):  # then again, with the vectors that it went over to
                    return self._neighbours(room, vector[np.newaxis], k, left_out=vector_id, where=where, mode=mode)[0]

    def mode(self, asked: Mode | None = None, *, fingerprint: str | None = None) -> Mode:
        """Return how a search that asks for this mode is done now, among the vectors of a model.

        None takes `fast` once there is a code for it; `fast` is answered by `exact` while there is none. Raises
        ModeUnavailableError for `codes` without a code, IndexModelError.
        """
        return self._codes.resolve_mode(self.spaces.room(fingerprint), asked)

    def duplicates(
        self,
        threshold: float,
        limit: int,
        *,
        where: Where | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Pairs:
        """Return the nearest `limit` pairs of images that fit and are at most `threshold` apart, nearest first.

        stopped: asked again and again; when true, the pairs found so far are returned. Raises FilterError.
        """
        room = self.spaces.active
        with self._catalog.read_view(room.searcher.view) as frozen:
            view = frozen.captured
            if where is not None:
                view = restrict(view, self._fitting(room.space.id, frozen, where))
        pairs = near_pairs(view, threshold, limit, stopped)
        known = self._catalog.describe(sorted({number for _, *pair in pairs for number in pair}))
        return [
            NearPair(known[first][0], known[second][0], distance)
            for distance, first, second in pairs
            if first in known and second in known  # others were deleted meanwhile
        ]

    def snapshot(self, target: Path) -> SnapshotManifest:
        """Copy the index, as it is now, into the new folder `target`, while others write.

        Raises TargetExistsError, IndexFullError, IndexReadOnlyError, IndexCorruptError.
        """
        return take_snapshot(self._folder.parent, target)

    def stats(self) -> IndexStats:
        """Return counts and sizes."""
        room = self.spaces.active
        return IndexStats(
            images=self._catalog.images(),
            vectors=len(room.searcher),
            bytes_on_disk=bytes_on_disk(self._folder),
            bytes_in_memory=self.spaces.bytes_in_memory,
            mode=self._codes.resolve_mode(room, None),
            model=room.space.model,
            fingerprint=room.space.fingerprint,
        )

    def _neighbours(
        self,
        room: SearchSpace,
        queries: NDArray[np.float16],
        k: int,
        *,
        left_out: int | None,
        where: Where | None,
        mode: Mode,
    ) -> Answers:
        if k < 1:
            raise ValueError(f"k is {k}, not at least 1")
        wanted = k + (left_out is not None)
        if where is None:
            hits = room.searcher.search(queries, wanted, mode=mode)
            found = _ids(hits)
            known = self._catalog.describe(found)
        if where is not None or len(known) < len(found):
            # A filter, or some that went while we searched: with the catalogue and the vectors of one moment.
            with self._catalog.read_view(room.searcher.view) as frozen:
                view = frozen.captured
                if where is not None:
                    view = restrict(view, self._fitting(room.space.id, frozen, where))
                hits = room.searcher.search(queries, wanted, view, mode)
                known = frozen.describe(_ids(hits))
        if not self.spaces.holds(room):  # its vectors were being deleted, perhaps
            raise IndexSwitchedError(self._folder, f"to {self.spaces.active.space.model}")
        answers = []
        for hit in hits:
            ranked = [
                (float(distance), *known[int(number)])
                for number, distance in zip(hit.ids, hit.distances, strict=True)
                if int(number) != left_out and int(number) in known
            ]
            answers.append([Neighbour(key, distance, json.loads(text)) for distance, key, text in sorted(ranked)[:k]])
        return answers

    def _fitting(self, space: int, frozen: ReadView[View], where: Where) -> NDArray[np.int64]:
        """Return the ids of the vectors in `space` whose images fit; kept until something is written."""
        if frozen.commits is None:
            return frozen.matching(space, where)
        with self._filters_lock:
            if self._filters_of != frozen.commits:
                self._filters.clear()
                self._filters_of = frozen.commits
            ids = self._filters.get((space, where))
        if ids is None:
            ids = frozen.matching(space, where)
            with self._filters_lock:
                if self._filters_of == frozen.commits and len(self._filters) < _FILTERS_KEPT:
                    self._filters[space, where] = ids
        return ids


def _ids(hits: list[Hits]) -> list[int]:
    return sorted({int(number) for hit in hits for number in hit.ids})


def _model_of(room: SearchSpace) -> VectorModel:
    return VectorModel(room.space.fingerprint, room.space.model)


def bytes_on_disk(folder: Path) -> int:
    """Return the size of all files of an index."""
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # a file that was just replaced
            total += file.stat().st_size
    return total
