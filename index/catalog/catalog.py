"""The catalog: one SQLite file with all images, their metadata, pictures and vectors.

All other data of the index is derived from it and can be deleted.
Guarantees: a change is on disk when the method returns, and is applied completely or not at all. Concurrent changes
share a commit. A listing returns each image once, even if others are added or deleted meanwhile.
Out of scope: similarity search (see index/search), validation (see index/records.py), and locking out a second process
(see lock.py).
A vector space is the set of vectors made by one model. An image has at most one vector in each space; search uses the
active space.
"""

from __future__ import annotations

import contextlib
import json
import queue
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from index.catalog import attributes, listing
from index.catalog import spaces as space_table
from index.catalog.database import check_format, connect, migrate, record_checksum, translated
from index.catalog.images import Change, Entry, add_image, add_vector, change_metadata, delete_found, delete_images
from index.catalog.read_view import ReadView
from index.catalog.reserve import Reserve
from index.catalog.spaces import SwitchResult
from index.catalog.writer import Writer
from index.cursor import Listing, make_cursor, read_cursor
from index.errors import IndexFullError, IndexReadOnlyError, IndexSwitchedError, KeyNotFoundError, PictureNotFoundError
from index.fields import Scalar
from index.filters import Where
from index.records import DIMENSIONS, ImageRecord, Page, Space, Unembedded
from model_store.image import PREPARATION

T = TypeVar("T")
_DELETE_BATCH = 100  # about 10 ms, for which another write may have to wait


class Catalog:
    """The catalog file. All methods are thread-safe. Also a context manager that closes it."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        """Open the file `path`; create it if it is missing.

        Raises IndexCorruptError, IndexFormatError, IndexFullError, IndexReadOnlyError.
        """
        self.path = path
        self._readers: queue.LifoQueue[sqlite3.Connection] = queue.LifoQueue()
        self._writer: Writer | None = None
        connection = connect(path, read_only=read_only)
        try:
            if read_only:
                check_format(connection, path)
                self._readers.put(connection)
            else:
                migrate(connection, path)
                self._writer = Writer(connection, path)
                self._reserve = Reserve(path.parent)
            self.identity = str(self._one("SELECT value FROM meta WHERE name = 'identity'")[0])
        except BaseException:
            if self._writer is not None:
                self._writer.close()
            connection.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Finish the queued writes and close all connections."""
        while not self._readers.empty():
            self._readers.get().close()
        if self._writer is not None:
            self._writer.close()  # closed last: SQLite then moves its write-ahead log into the file

    @property
    def writer(self) -> Writer:
        """The writer thread. Raises IndexReadOnlyError if the catalog was opened read-only."""
        if self._writer is None:
            raise IndexReadOnlyError(self.path, "it was opened read-only")
        return self._writer

    @property
    def commit_lock(self) -> contextlib.AbstractContextManager[object]:
        """The lock held from the start of a commit until its callback has run; no lock if opened read-only."""
        return contextlib.nullcontext() if self._writer is None else self._writer.commit_lock

    # --- images -----------------------------------------------------------------------------------------------------

    def add(self, entries: Sequence[Entry], committed: Callable[[Change], None]) -> Change:
        """Add or replace `entries`, in order, in one transaction; `committed` runs right after the commit.

        Stores vectors of the active space and of the target space. Raises IndexSwitchedError if an entry has no vector
        for the active space.
        """

        def work(connection: sqlite3.Connection) -> Change:
            change = Change()
            spaces = space_table.open_spaces(connection)
            for entry in entries:
                vectors = {space: entry.vectors[name] for name, space in spaces.items() if name in entry.vectors}
                if next(iter(spaces.values())) not in vectors:
                    raise IndexSwitchedError(self.path.parent, f"{entry.key!r} was embedded with the previous model")
                change.outcomes.append(add_image(connection, vectors, entry, change))
            return change

        return self.writer.run(work, committed)

    def delete(self, key: str, committed: Callable[[Change], None]) -> None:
        """Delete an image with its picture and vectors. Raises KeyNotFoundError."""

        def work(connection: sqlite3.Connection) -> Change:
            row = connection.execute("SELECT id FROM images WHERE key = ?", (key,)).fetchone()
            if row is None:
                raise KeyNotFoundError(key)
            change = Change()
            delete_images(connection, row, change)
            return change

        self._delete(work, committed)

    def delete_where(
        self, where: Where, committed: Callable[[Change], None], stopped: Callable[[], bool] = lambda: False
    ) -> int:
        """Delete the images that match `where` now; return how many. Raises FilterError.

        They are deleted in short transactions, so that other writes can run in between. Each image is tested again in
        its transaction. Once `stopped` returns True, the rest is not deleted.
        """
        condition, values = self._condition(where)
        found = self._all(f"SELECT i.id FROM images i WHERE {condition}", values)  # noqa: S608
        each, each_values = self._condition(where, each=True)
        query = f"SELECT i.id FROM json_each(?) j JOIN images i ON i.id = j.value WHERE {each}"  # noqa: S608
        deleted = 0
        for start in range(0, len(found), _DELETE_BATCH):
            if stopped():
                break
            batch = json.dumps([row[0] for row in found[start : start + _DELETE_BATCH]])
            work = partial(delete_found, query=query, values=(batch, *each_values))
            deleted += self._delete(work, lambda done: committed(done[0]))[1]
        return deleted

    def delete_if_unchanged(
        self, pairs: Sequence[tuple[str, str, str, str]], committed: Callable[[Change], None]
    ) -> int:
        """Delete images in one transaction, and return how many.

        pairs: key and sha256 of an image to delete, and those of another image. Nothing is deleted for a pair if one
        of the two images does not exist any more, or has another sha256.
        """
        work = partial(delete_found, query=listing.UNCHANGED, values=(json.dumps(pairs),))
        return self._delete(work, lambda done: committed(done[0]))[1]

    def _delete(self, work: Callable[[sqlite3.Connection], T], committed: Callable[[T], None]) -> T:
        """Run a deletion in the writer thread. If the disk is full, it gets the space of the reserve."""
        try:
            return self.writer.run(work, committed)
        except IndexFullError:
            if not self._reserve.release():
                raise
            return self.writer.run(work, committed)

    def change_metadata(self, key: str, update: Callable[[dict[str, Any]], Mapping[str, Any]]) -> None:
        """Replace the metadata by `update(metadata)` in one transaction. Raises KeyNotFoundError, MetadataError."""
        self.writer.run(lambda connection: change_metadata(connection, key, update))

    def lookup(self, spaces: Sequence[int], keys: Sequence[str]) -> dict[str, str]:
        """Return {key: sha256} of those among `keys` that have a vector in each of `spaces`.

        Images of an earlier preparation are left out, so that they are added again.
        """
        # +: not by the index of `preparation`, which would read all images. CROSS JOIN: for each key, find its image.
        rows = self._all(
            """SELECT i.key, i.sha256 FROM json_each(?) j CROSS JOIN images i ON i.key = j.value
               WHERE +i.preparation = ? AND NOT EXISTS (SELECT 1 FROM json_each(?) s WHERE NOT EXISTS
                   (SELECT 1 FROM vectors v WHERE v.image_id = i.id AND v.space_id = s.value))""",
            (json.dumps(list(keys)), PREPARATION, json.dumps(list(spaces))),
        )
        return dict(rows)

    def get(self, key: str) -> ImageRecord:
        """Return one image's record. Raises KeyNotFoundError."""
        return ImageRecord.from_row(self._of_key(key, f"SELECT {listing.RECORD} FROM images i WHERE i.key = ?"))  # noqa: S608

    def contains(self, key: str) -> bool:
        """Return whether an image has this key."""
        return bool(self._one("SELECT EXISTS (SELECT 1 FROM images WHERE key = ?)", (key,))[0])

    def picture(self, key: str) -> bytes:
        """Return the stored JPEG. Raises KeyNotFoundError, PictureNotFoundError."""
        [picture] = self._of_key(
            key, "SELECT p.jpeg FROM images i LEFT JOIN pictures p ON p.image_id = i.id WHERE i.key = ?"
        )
        if picture is None:
            raise PictureNotFoundError(key)
        return bytes(picture)

    def page(self, limit: int, cursor: str | None, wanted: Listing) -> Page:
        """Return `limit` images of a listing, starting at `cursor`. Raises CursorError, FilterError."""
        after = None
        if cursor is not None:
            after = read_cursor(cursor, self.identity, wanted, lambda last: listing.is_position(wanted, last))
        with self._reader() as connection:
            images, last = listing.read_page(connection, wanted, after, limit)
        return Page(images, None if last is None else make_cursor(self.identity, wanted, last))

    def images(self, where: Where | None = None) -> int:
        """Return the number of images that match. Raises FilterError."""
        condition, values = self._condition(where)
        return int(self._one(f"SELECT count(*) FROM images i WHERE {condition}", values)[0])  # noqa: S608

    def outdated(self) -> int:
        """Return the number of images that an earlier preparation prepared."""
        if not self._one("SELECT EXISTS (SELECT 1 FROM pragma_table_info('images') WHERE name = 'preparation')")[0]:
            return self.images()  # opened read-only, and written before the version was recorded
        return int(self._one("SELECT count(*) FROM images WHERE preparation < ?", (PREPARATION,))[0])

    # --- vectors ----------------------------------------------------------------------------------------------------

    def vector(self, space: int, key: str) -> tuple[int, NDArray[np.float16]] | None:
        """Return the id and value of an image's vector in `space`, or None if it has none. Raises KeyNotFoundError."""
        number, vector = self._of_key(
            key,
            """SELECT v.id, v.vector FROM images i LEFT JOIN vectors v ON v.image_id = i.id AND v.space_id = ?
               WHERE i.key = ?""",
            space,
        )
        return None if number is None else (int(number), np.frombuffer(vector, np.float16))

    def describe(self, vector_ids: Sequence[int]) -> dict[int, tuple[str, str]]:
        """Return {vector id: (key, metadata as JSON)} of the vectors that still exist."""
        with self._reader() as connection:
            return ReadView(None, connection, None).describe(vector_ids)

    def describe_images(self, vector_ids: Sequence[int]) -> Sequence[tuple[Any, ...]]:
        """Return the images of those vectors that still exist, the best one first: see `listing.describe`."""
        with self._reader() as connection:
            return listing.describe(connection, json.dumps(list(vector_ids)))

    @contextmanager
    def read_view(self, capture: Callable[[], T]) -> Iterator[ReadView[T]]:
        """Return a view of the catalog and the result of `capture()`, both of the same commit.

        `capture` copies state in memory; the callbacks of all earlier commits have run. Writers wait only for it.
        """
        with self._reader() as connection:
            with self.commit_lock:
                _begin_read(connection)
                captured = capture()
                commits = None if self._writer is None else self._writer.commits
            try:
                yield ReadView(captured, connection, commits)
            finally:
                connection.execute("COMMIT")

    def vector_checksums(self, space: int) -> tuple[NDArray[np.int64], NDArray[np.uint32]]:
        """Return the ids, ascending, and the CRC-32 checksums of all vectors in `space`."""
        rows = self._all("SELECT id, crc FROM vectors WHERE space_id = ? ORDER BY id", (space,))
        table = np.array(rows, dtype=np.int64).reshape(-1, 2)
        return table[:, 0].copy(), table[:, 1].astype(np.uint32)

    def vectors(self, ids: Sequence[int]) -> NDArray[np.float16]:
        """Return stored vectors, float16 [len(ids), 4096]. All `ids` must exist, in ascending order."""
        rows = self._all(
            "SELECT v.vector FROM json_each(?) j CROSS JOIN vectors v ON v.id = j.value ORDER BY j.key",
            (json.dumps(list(ids)),),
        )
        return np.frombuffer(b"".join(row[0] for row in rows), dtype=np.float16).reshape(-1, DIMENSIONS)

    # --- spaces -----------------------------------------------------------------------------------------------------

    def spaces(self) -> list[Space]:
        """Return all vector spaces, oldest first."""
        rows = self._all(
            """SELECT s.id, s.fingerprint, s.model, s.id = CAST(a.value AS INTEGER),
                      (SELECT count(*) FROM vectors v WHERE v.space_id = s.id), (SELECT count(*) FROM images),
                      s.id = CAST(k.value AS INTEGER), s.id = CAST(t.value AS INTEGER)
               FROM spaces s LEFT JOIN meta a ON a.name = 'active_space' LEFT JOIN meta k ON k.name = 'kept_space'
               LEFT JOIN meta t ON t.name = 'target_space' ORDER BY s.id"""
        )
        return [
            Space(i, print_, model, bool(on), n, all_ - n, kept=bool(kept), target=bool(target))
            for i, print_, model, on, n, all_, kept, target in rows
        ]

    def ensure_space(self, fingerprint: str, model: str) -> Space:
        """Return a model's space, created if missing. `model` becomes its display name."""

        def work(connection: sqlite3.Connection) -> int:
            row = connection.execute(
                """INSERT INTO spaces (fingerprint, model, crc) VALUES (?, ?, ?)
                   ON CONFLICT (fingerprint) DO UPDATE SET model = excluded.model, crc = excluded.crc RETURNING id""",
                (fingerprint, model, record_checksum(fingerprint, model)),
            ).fetchone()
            return int(row[0])

        number = self.writer.run(work)
        return next(space for space in self.spaces() if space.id == number)

    def set_target(self, space: int, committed: Callable[[None], None] | None = None) -> None:
        """Make `space` the target of a migration: added images get a vector there too. No target if it is active."""
        self.writer.run(lambda connection: space_table.set_target(connection, space), committed)

    def activate_space(self, space: int, *, keep: bool = True, committed: Callable[[None], None] | None = None) -> None:
        """Make `space` the active one. With `keep`, the previous one is kept for a rollback."""
        self.writer.run(lambda connection: space_table.activate(connection, space, keep=keep), committed)

    def activate_if_complete(
        self, space: int, skipped: frozenset[int], *, keep: bool, committed: Callable[[SwitchResult], None]
    ) -> SwitchResult:
        """Make `space` the active one if all images, except those with ids in `skipped`, have a vector there."""
        return self.writer.run(
            lambda connection: space_table.activate_if_complete(connection, space, skipped, keep=keep), committed
        )

    def drop_unused_vectors(self) -> int:
        """Delete a batch of vectors of spaces without a role, and the empty ones of these spaces. Return its size."""
        return self.writer.run(space_table.drop_unused)

    def unembedded(self, space: int, after: int, limit: int) -> Sequence[Unembedded]:
        """Return up to `limit` images without a vector in `space`, in the order of their ids, after the id `after`."""
        rows = self._all(
            """SELECT i.id, i.key, i.sha256, p.jpeg FROM images i LEFT JOIN pictures p ON p.image_id = i.id
               WHERE i.id > ? AND NOT EXISTS (SELECT 1 FROM vectors v WHERE v.image_id = i.id AND v.space_id = ?)
               ORDER BY i.id LIMIT ?""",
            (after, space, limit),
        )
        return [Unembedded(*row) for row in rows]

    def add_vectors(
        self,
        space: int,
        images: Sequence[Unembedded],
        vectors: NDArray[np.float16],
        committed: Callable[[Change], None] | None = None,
    ) -> int:
        """Store the vectors of `images`, except images replaced or deleted since; return how many were stored."""

        def work(connection: sqlite3.Connection) -> Change:
            change = Change()
            for image, row in zip(images, vectors, strict=True):
                if space_table.needs_vector(connection, space, image):
                    add_vector(connection, space, image.id, row, change)
            return change

        return len(self.writer.run(work, committed).ids)

    def pin(self) -> None:
        """Make later reads see the catalog as of now. Only if it was opened read-only and is used in one thread."""
        with self._reader() as connection:
            _begin_read(connection)

    # --- reading ----------------------------------------------------------------------------------------------------

    @contextmanager
    def _reader(self) -> Iterator[sqlite3.Connection]:
        """Lend a read-only connection to the calling thread."""
        try:
            connection = self._readers.get_nowait()
        except queue.Empty:
            connection = connect(self.path, read_only=True)
        try:
            with translated(self.path):
                yield connection
        finally:
            self._readers.put(connection)

    def _all(self, query: str, values: Sequence[object] = ()) -> Sequence[tuple[Any, ...]]:
        with self._reader() as connection:
            return connection.execute(query, values).fetchall()

    def _one(self, query: str, values: Sequence[object] = ()) -> tuple[Any, ...]:
        return self._all(query, values)[0]

    def _of_key(self, key: str, query: str, *values: object) -> tuple[Any, ...]:
        """Return the row of the image with this key, the last parameter of `query`. Raises KeyNotFoundError."""
        rows = self._all(query, (*values, key))
        if not rows:
            raise KeyNotFoundError(key)
        return rows[0]

    def _condition(self, where: Where | None, *, each: bool = False) -> tuple[str, list[Scalar | int]]:
        with self._reader() as connection:
            return attributes.to_sql(connection, where, "i.id", each=each)


def _begin_read(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN")
    connection.execute("SELECT 1 FROM meta").fetchone()  # SQLite takes its snapshot at the first read
