"""The maps of a home: read, kept up to date with the index, and computed.

Guarantees: thread-safe. A map belongs to the vectors of one model, and is used only while these are searched. A file
that another process wrote is used from the next request on.
Out of scope: running in the background (service/indexing/map_job.py).
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from index.filters import Where
from index.interface import ImageIndex
from index.labels import LABEL_FIELD, label_of
from index.projection import map_file
from index.projection.index_map import IndexMap, Method
from index.projection.plane import Floats
from index.projection.tsne import tsne

_WAIT_S: Final = 0.1
Stopped = Callable[[], bool]
_Row = tuple[str, str, Any]  # key, hash, value of the field


@dataclass(frozen=True, slots=True)
class MapPage:
    """Positions of some images, ordered by key.

    images: number of images that match. last: the last key, also if it has no position. positions: float32 [n, 2],
    about -1 to 1. labels: None for an image without one. more: whether there are images after these. missing: number of
    images of this page that have no position yet.
    """

    model: str
    method: Method
    created: float
    images: int
    last: str
    keys: list[str]
    positions: Floats
    labels: list[str | None]
    more: bool
    missing: int


class Maps:
    """The maps in a folder, one for each model."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._fingerprint = ""
        self._map: IndexMap | None = None
        self._stamp: tuple[int, int] | None = None  # of the file that was read last

    def page(
        self,
        index: ImageIndex,
        field: str,
        limit: int,
        after: str | None = None,
        *,
        where: Where | None = None,
        stopped: Stopped = lambda: False,
    ) -> MapPage:
        """Return up to `limit` images that match, starting after the key `after`. New ones are placed.

        field: metadata field of the labels. stopped: called repeatedly; once it returns True, the images placed so far
        are returned. Raises FilterError.
        """
        model = index.searched
        rows = _list(index, field, where, stopped)
        start = np.searchsorted(np.array([row[0] for row in rows], dtype=object), after, "right") if after else 0
        chosen = rows[int(start) : int(start) + limit]
        with _Held(self._lock, stopped) as held:
            current = self._follow(index, model.fingerprint, rows if where is None else None) if held else None
            if current is not None:
                current.update(index, [row[0] for row in chosen], [row[1] for row in chosen], stopped)
                if where is None:
                    current.forget([row[0] for row in rows])
            known = [] if current is None else [row for row in chosen if row[0] in current.rows]
            places = [] if current is None else [current.rows[row[0]] for row in known]
            return MapPage(
                model.model,
                Method.PCA if current is None else current.method,
                time.time() if current is None else current.created,
                len(rows),
                chosen[-1][0] if chosen else "",
                [row[0] for row in known],
                np.empty((0, 2), np.float32) if current is None else current.positions[places],
                [label_of(row[2]) for row in known],
                int(start) + limit < len(rows),
                len(chosen) - len(known),
            )

    def compute(
        self,
        index: ImageIndex,
        method: Method,
        stopped: Stopped = lambda: False,
        progress: Callable[[float], None] = lambda _: None,
    ) -> IndexMap | None:
        """Compute the map of all images and write its file; None if stopped before, or if there are no images.

        progress: called with the share of the work that is done. Raises MissingExtraError, OSError.
        """
        fingerprint = index.searched.fingerprint
        rows = _list(index, LABEL_FIELD, None, stopped)
        keys, hashes = [row[0] for row in rows], [row[1] for row in rows]
        computed = IndexMap.fit(index, keys, time.time()) if keys and not stopped() else None
        if computed is None:
            return None
        for start in range(0, len(keys), 1024):
            part = slice(start, start + 1024)
            computed.update(index, keys[part], hashes[part], stopped)
            progress(min(start + 1024, len(keys)) / len(keys) * (1.0 if method is Method.PCA else 0.2))
        if stopped():
            return None
        if method is Method.TSNE:
            positions = tsne(computed.components, stopped, lambda share: progress(0.2 + 0.8 * share))
            if stopped():
                return None
            if positions is not None:
                computed.replace(list(computed.rows), positions, time.time())
        map_file.save(self._path(fingerprint), computed)
        return computed

    def _path(self, fingerprint: str) -> Path:
        return self._folder / f"{fingerprint[:32]}.npz"

    def _follow(self, index: ImageIndex, fingerprint: str, rows: Sequence[_Row] | None) -> IndexMap | None:
        """Return the map of the searched vectors: that in memory, a newer one of the file, or a new one of PCA.

        rows: all images of the index; None if they were not listed. Returns None for an empty index.
        """
        stamp = _stamp_of(self._path(fingerprint))
        if fingerprint != self._fingerprint or stamp != self._stamp:
            self._fingerprint, self._stamp = fingerprint, stamp
            self._map = map_file.load(self._path(fingerprint)) if stamp else None
        if self._map is None or self._map.outgrown:
            keys = [row[0] for row in (_list(index, LABEL_FIELD, None) if rows is None else rows)]
            self._map = IndexMap.fit(index, keys, time.time()) if keys else None
        return self._map


class _Held:
    """Acquires a lock, unless `stopped()` becomes true before."""

    def __init__(self, lock: threading.Lock, stopped: Stopped) -> None:
        self._lock, self._stopped, self._held = lock, stopped, False

    def __enter__(self) -> bool:
        while not self._held and not self._stopped():
            self._held = self._lock.acquire(timeout=_WAIT_S)
        return self._held

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._lock.release()


def _list(index: ImageIndex, field: str, where: Where | None, stopped: Stopped = lambda: False) -> list[_Row]:
    """Return (key, hash, value of the field) of the images that match, ordered by key."""
    rows: list[_Row] = []
    for batch in index.points(field, where=where):
        if stopped():
            break
        rows += zip(batch.keys, batch.hashes, batch.values, strict=True)
    return sorted(rows, key=lambda row: row[0])


def _stamp_of(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size
