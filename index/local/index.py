"""The index on one machine, stored in a folder: images in, neighbours out.

Guarantees: an add or delete that returned is on disk, and every later search sees it. Any method may be called from
any thread at any time. Vectors of two models are never compared. One process writes; a second one is rejected with a
message that names the first.
Out of scope: computing vectors and preparing pictures (model_store), and indexes on several machines (index/milvus).

Stored vectors and queries are rounded to float16, so the distance of an indexed image's own vector is exactly 0.
Equal distances are ordered by key.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence, Set
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index import records
from index.catalog.backup import take_snapshot
from index.catalog.catalog import Catalog
from index.catalog.changes import change_keys, change_matching
from index.catalog.lock import FolderLock, check_exists
from index.catalog.queries import points as point_table
from index.catalog.queries.facets import read_facets
from index.catalog.queries.labelled import labelled_vectors
from index.catalog.read_view import ReadView
from index.cursor import Listing, Order
from index.duplicates import Duplicates, NearImage, describe_groups
from index.errors import IndexModelError, IndexReadOnlyError, IndexSwitchedError
from index.facets import Facets
from index.filters import Where, has_field, parse_field
from index.interface import (
    MAX_LISTED,
    Answers,
    ImageIndex,
    Neighbours,
    Outcomes,
    SearchOptions,
    Stopped,
    Update,
    Vectors,
    check_at_least_one,
    keys_of,
)
from index.labels import LabelledVectors
from index.local.code_builder import CodeBuilder
from index.local.novelty import NoveltyRanking
from index.local.space import SearchSpace
from index.local.spaces import Spaces
from index.local.vector_files import bytes_on_disk
from index.points import Points
from index.search.duplicates import near_groups
from index.search.gpu.device import open_device
from index.search.ranking import ids_of
from index.search.searcher import Mode
from index.search.view import View, ids_at, live_slots, restrict, rows_at
from model_store.cores import usable_cores
from model_store.novelty.reference import Reference

_CACHED_FILTERS = 64
_CACHED_COUNTS = 1000


class LocalImageIndex(ImageIndex):
    """The index in the folder `home`/index: a catalog on disk and a searcher in memory. Open it with `open`.

    `ImageIndex` describes the arguments and errors of the methods.
    """

    spaces: Spaces

    def __init__(
        self, folder: Path, catalog: Catalog, spaces: Spaces, lock: FolderLock | None, options: records.IndexOptions
    ) -> None:
        """Use `open`; the constructor only stores its arguments."""
        super().__init__(spaces, keep_pictures=options.keep_pictures)
        self._folder, self._catalog, self._lock = folder, catalog, lock
        self._codes, self._novelty = spaces.codes, NoveltyRanking(catalog)
        self._closed = False
        # (number of commits, space, filter): ids of matching vectors. Replaced as a whole, never modified.
        self._counts: tuple[int | None, dict[Where, int]] = (None, {})  # (number of commits, counts), as a whole too
        self._filters: dict[tuple[int | None, int, Where], NDArray[np.int64]] = {}

    @classmethod
    def open(cls, home: Path, options: records.IndexOptions) -> LocalImageIndex:
        """Open the index of `home`, and create it if it does not exist.

        Raises IndexModelError if the vectors are of another model, IndexLockedError, IndexCorruptError,
        IndexFormatError, IndexReadOnlyError, IndexFullError, IndexUnavailableError, DeviceUnavailableError.
        """
        folder = home / "index"
        device = open_device(options.device, options.device_memory)
        with contextlib.ExitStack() as stack:
            lock = None
            if options.read_only:
                check_exists(folder)
            else:
                lock = FolderLock(folder)
                stack.callback(lock.close)
            catalog = stack.enter_context(Catalog(folder / "catalog.db", read_only=options.read_only))
            codes = CodeBuilder(folder, fast_from=options.fast_from, read_only=options.read_only)
            stack.callback(codes.close)
            threads = options.threads or usable_cores()
            spaces = Spaces(folder, catalog, codes, threads=threads, keep_previous=options.keep_previous, device=device)
            stack.callback(spaces.close)
            spaces.open(options)
            stack.pop_all()
        return cls(folder, catalog, spaces, lock, options)

    def close(self) -> None:
        """Finish the queued writes, stop the work in the background, and release the folder."""
        if self._closed:
            return
        self._closed = True
        self._catalog.close()
        self._codes.close()
        self.spaces.close()
        if self._lock is not None:
            self._lock.close()

    # --- images -------------------------------------------------------------------------------------------------------

    def add_many(self, images: Sequence[records.NewImage]) -> Outcomes:
        """Add or replace all of `images` in one transaction, or none of them if one is rejected."""
        return self._catalog.add(self._encode(images), self.spaces.apply).outcomes

    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """Return {key: sha256} of those `keys` that are complete (see `ImageIndex`). Raises InvalidKeyError."""
        spaces = [space.record.id for space in self.spaces.required_spaces]
        return self._catalog.lookup(spaces, [records.check_key(key) for key in keys])

    def get(self, key: str) -> records.ImageRecord:
        """Return one image's record. Raises InvalidKeyError, KeyNotFoundError."""
        return self._catalog.get(records.check_key(key))

    def vectors(self, keys: Sequence[str], *, fingerprint: str | None = None) -> Vectors:
        """Return {key: float16 [4096]} of those `keys` that have a vector of the model."""
        space = self.spaces.space(fingerprint).record.id
        found = {key: self._catalog.vector(space, records.check_key(key)) for key in keys}
        return {key: stored[1] for key, stored in found.items() if stored is not None}

    def existing_vectors(self, keys: Sequence[str]) -> Vectors:
        """Return {key: float16 [4096]} of those `keys` that have a vector of the searched model."""
        space = self.spaces.active
        with self._catalog.read_view(space.searcher.view) as read_view:
            found = point_table.vector_ids(read_view.connection, space.record.id, keys)
            view = restrict(read_view.captured, np.array(sorted(found), np.int64))
        slots = live_slots(view)
        return {
            found[number]: row for number, row in zip(ids_at(view, slots).tolist(), rows_at(view, slots), strict=True)
        }

    def points(self, field: str, *, where: Where | None = None) -> Iterator[Points]:
        """Yield the matching images with a vector of the searched model, in the order of their first addition."""
        return point_table.points(self._catalog.path, self.spaces.active.record.id, parse_field(field), where)

    def contains(self, key: str) -> bool:
        """Return whether an image has this key. Raises InvalidKeyError."""
        return self._catalog.contains(records.check_key(key))

    def picture(self, key: str) -> bytes:
        """Return the stored 256x256 JPEG. Raises InvalidKeyError, KeyNotFoundError, PictureNotFoundError."""
        return self._catalog.picture(records.check_key(key))

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
        """Return up to `limit` matching images, by default in the order of their first addition, after `cursor`."""
        check_at_least_one("limit", limit)
        return self._catalog.page(limit, cursor, Listing(where, prefix, order or "added", seed))

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
        """Return a page of the matching images by their distance to the training images of the searched model."""
        check_at_least_one("limit", limit)
        space = self.spaces.space(fingerprint)
        return self._novelty.page(space, reference, listing, limit=limit, cursor=cursor, stopped=stopped)

    def fields(
        self,
        limit: int,
        *,
        where: Where | None = None,
        field: str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Facets:
        """Return the metadata fields of the matching images, with their most frequent values."""
        check_at_least_one("limit", limit)
        return read_facets(self._catalog.path, limit, where=where, field=field, stopped=stopped)

    def count(self, where: Where) -> int:
        """Return the number of images that match. It is kept until the next write."""
        commits = None
        with contextlib.suppress(IndexReadOnlyError):  # opened read-only: nothing is kept
            commits = self._catalog.writer.commits
        kept_commits, counts = self._counts
        if commits is None or commits != kept_commits or len(counts) >= _CACHED_COUNTS:
            counts = {}
        if where not in counts:
            counts = {**counts, where: self._catalog.images(where)}
            self._counts = (commits, counts)
        return counts[where]

    def delete(self, key: str) -> None:
        """Delete one image; no later search finds it. Raises InvalidKeyError, KeyNotFoundError, IndexReadOnlyError."""
        self._catalog.delete(records.check_key(key), self.spaces.apply)

    def delete_where(self, where: Where, *, stopped: Callable[[], bool] = lambda: False) -> int:
        """Delete the images that match now, in several transactions, and return how many were deleted."""
        return self._catalog.delete_where(where, self.spaces.apply, stopped)

    def change_metadata(self, key: str, update: Update) -> records.ImageRecord:
        """Replace an image's metadata by `update(metadata)`; no other change can happen in between."""
        self._catalog.change_metadata(records.check_key(key), update)
        return self._catalog.get(key)

    def change_keys(self, keys: Sequence[str], update: Update) -> records.MetadataChanges:
        """Replace the metadata of these images in one transaction: of all of them, or of none if a key is unknown."""
        return change_keys(self._catalog, [records.check_key(key) for key in dict.fromkeys(keys)], update)

    def change_matching(
        self, where: Where, update: Update, *, stopped: Callable[[], bool] = lambda: False
    ) -> records.MetadataChanges:
        """Replace the metadata of the images that match now, in several transactions."""
        return change_matching(self._catalog, where, update, stopped)

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
        """Return the `k` nearest images of each vector, float32 [n, 4096], nearest first."""
        space = self.spaces.space(fingerprint)
        options = SearchOptions(keys_of(exclude), where, mode, max_distance)
        stored = [self._catalog.vector(space.record.id, records.check_key(key)) for key in options.exclude]
        excluded = {each[0] for each in stored if each is not None}
        return self._neighbours(space, records.encode_vectors(vectors), k, excluded, options)

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
        while True:
            space = self.spaces.active
            stored = self._catalog.vector(space.record.id, records.check_key(key))
            if stored is None and self.spaces.is_loaded(space):
                raise IndexModelError(self._folder, "an earlier model", space.record.model, 1)
            if stored is not None:
                vector_id, vector = stored
                with contextlib.suppress(IndexSwitchedError):  # the index switched models: search its new vectors
                    options = SearchOptions([key], where, mode, max_distance)
                    [neighbours] = self._neighbours(space, vector[np.newaxis], k, {vector_id}, options)
                    return neighbours

    def labelled_vectors(
        self, field: str, *, only_labelled: bool = False, where: Where | None = None, fingerprint: str | None = None
    ) -> Iterator[LabelledVectors]:
        """Yield all matching images, a thousand at a time, with a metadata field and their vectors of one model."""
        path = parse_field(field)
        wanted = has_field(path, where) if only_labelled else where
        return labelled_vectors(self._catalog.path, fingerprint or self.searched.fingerprint, path, wanted)

    def mode(self, requested: Mode | None = None, *, fingerprint: str | None = None) -> Mode:
        """Return the mode that a search with the `requested` mode uses now, among the vectors of a model.

        None selects `fast` once its code is ready. Until then, `fast` searches exactly.
        """
        return self._codes.resolve_mode(self.spaces.space(fingerprint), requested)

    def duplicates(
        self,
        threshold: float,
        limit: int,
        *,
        where: Where | None = None,
        images: int = MAX_LISTED,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Duplicates:
        """Return groups of matching images that are linked by pairs at most `threshold` apart, the largest first."""
        space = self.spaces.active
        with self._catalog.read_view(space.searcher.view) as read_view:
            view = self._view(space, read_view, where)

        def keep(ids: Sequence[int]) -> int:
            return next((row[0] for row in self._catalog.describe_images(ids)), ids[0])

        found = near_groups(view, threshold, groups=limit, vectors=images, keep=keep, stopped=stopped)
        known = self._catalog.describe_images(found.ids)  # images that were deleted meanwhile are not in it
        return describe_groups(found, {row[0]: NearImage.from_row(row[1:]) for row in known})

    def _delete_if_unchanged(self, pairs: Sequence[tuple[NearImage, NearImage]]) -> int:
        """Delete the first image of each pair if both still have the same bytes, in one transaction."""
        compared = [(image.key, image.sha256, kept.key, kept.sha256) for image, kept in pairs]
        return self._catalog.delete_if_unchanged(compared, self.spaces.apply)

    def _neighbours(
        self, space: SearchSpace, queries: NDArray[np.float16], k: int, excluded: Set[int], options: SearchOptions
    ) -> Answers:
        """Search one space. excluded: ids of vectors to skip. Raises IndexSwitchedError if the space was replaced."""
        check_at_least_one("k", k)
        where, used_mode = options.where, self._codes.resolve_mode(space, options.mode)
        count = k + len(excluded)
        if where is None:
            hits = space.searcher.search(queries, count, mode=used_mode)
            found = ids_of(hits)
            known = self._catalog.describe(found)
        if where is not None or len(known) < len(found):
            # With a filter, or if hits were deleted meanwhile: use catalog and vectors of the same moment.
            with self._catalog.read_view(space.searcher.view) as read_view:
                view = self._view(space, read_view, where)
                hits = space.searcher.search(queries, count, view, used_mode)
                known = read_view.describe(ids_of(hits))
        if not self.spaces.is_loaded(space):  # its vectors may have been deleted during the search
            raise IndexSwitchedError(self._folder, f"to {self.spaces.active.record.model}")
        answers = []
        for hit in hits:
            ranked = [
                (float(distance), *known[int(number)])
                for number, distance in zip(hit.ids, hit.distances, strict=True)
                if int(number) not in excluded and int(number) in known
            ]
            nearest = sorted(ranked)[:k]
            found_images = (records.Neighbour(key, distance, json.loads(text)) for distance, key, text in nearest)
            answers.append(Neighbours(options.shorten(found_images), used_mode))
        return answers

    def _view(self, space: SearchSpace, read_view: ReadView[View], where: Where | None) -> View:
        """Return the vectors in `space` whose images match. Their ids are cached until the next write."""
        if where is None:
            return read_view.captured
        key = (read_view.commits, space.record.id, where)
        ids = self._filters.get(key)
        if ids is None:
            ids = read_view.matching(space.record.id, where)
            current = {each: found for each, found in self._filters.items() if each[0] == read_view.commits}
            if read_view.commits is not None and len(current) < _CACHED_FILTERS:
                self._filters = {**current, key: ids}
        return restrict(read_view.captured, ids)

    # --- the index as a whole -----------------------------------------------------------------------------------------

    def optimize(self) -> None:
        """Learn the short codes of the searched vectors again, and write all files of the vectors."""
        self._codes.optimize(self.spaces.active)

    def snapshot(self, target: Path) -> records.SnapshotManifest:
        """Copy the index in its current state to the new folder `target`, without blocking writers.

        Raises TargetExistsError, IndexFullError, IndexReadOnlyError, IndexCorruptError.
        """
        return take_snapshot(self._folder.parent, target)

    def stats(self) -> records.IndexStats:
        """Return counts and sizes."""
        space = self.spaces.active
        return records.IndexStats(
            images=self._catalog.images(),
            vectors=len(space.searcher),
            bytes_on_disk=bytes_on_disk(self._folder),
            bytes_in_memory=self.spaces.bytes_in_memory,
            mode=self._codes.resolve_mode(space, None),
            model=space.record.model,
            fingerprint=space.record.fingerprint,
            outdated=self._catalog.outdated(),
            fast=self._codes.fast_code(space),
            device=space.searcher.on_device,
        )
