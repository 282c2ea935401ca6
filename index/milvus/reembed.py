"""An index on Milvus to another model: its collection filled from the one that is searched, then made the searched one.

Promises: until every image that can have a vector there has one, search stays where it is; interrupted, the same call
goes on from there; what replicas change meanwhile is found by the next pass, and there is another one until nothing is.
Does not: take along images without a usable picture (they are listed, and leave the index when it goes over); hear of
what a replica that does not follow this model changes after the last pass: the same call again does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import numpy as np
from numpy.typing import NDArray

from index.bulk.pipeline import batches, embed
from index.bulk.report import ReembedReport, interruptible
from index.errors import FolderError
from index.milvus.client import Milvus
from index.milvus.registry import Meta
from index.milvus.schema import RECORD, Row, collection_of, image_schema, key_of, picture_of, searchable
from index.milvus.spaces import check_exists
from index.records import VectorModel, encode_vectors
from model_store.errors import ImageError
from model_store.image import inspect_and_prepare
from model_store.runtime.runner import Runner

_PAGE = 2000
_COMPARED = ["id", "sha256", "updated"]


def reembed_on_milvus(
    milvus: Milvus,
    name: str,
    runner: Runner,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: Callable[[ReembedReport], None] | None = None,
) -> ReembedReport:
    """Give every image of the index `name` a vector of the runner's model, from its stored picture; then switch.

    As `index.bulk.folder.reembed`. Closes the connection. Raises IndexUnavailableError when there is no index,
    IndexUnreachableError, FolderError when no image could be embedded.
    """
    model = VectorModel(runner.artifact.fingerprint, runner.artifact.embedder)
    with closing(milvus):
        meta = Meta(milvus, name)
        check_exists(meta, milvus.place, name)
        meta.open()
        active = meta.active
        report = ReembedReport()
        if active is None or active.fingerprint == model.fingerprint:
            return report
        source, target = (collection_of(name, each.fingerprint) for each in (active, model))
        milvus.open(source, image_schema)
        milvus.open(target, image_schema)
        meta.note_model(model)
        with interruptible(report), ThreadPoolExecutor(workers, "fc7-decode") as executor:
            work = _Work(milvus, source, target, runner=runner, executor=executor, report=report)
            while todo := work.differences():
                for ids in batches(todo, batch_size):
                    work.fill(ids)
                    if progress is not None:
                        progress(report)
        if not report.interrupted:
            if report.skipped and not report.embedded and not milvus.count(target):
                raise FolderError(milvus.place, "keeps no pictures to embed again: fc7 index build DIR --rebuild")
            meta.activate(model)
        return report


class _Work:
    """One run from a collection to another."""

    def __init__(
        self,
        milvus: Milvus,
        source: str,
        target: str,
        *,
        runner: Runner,
        executor: ThreadPoolExecutor,
        report: ReembedReport,
    ) -> None:
        self._milvus, self._source, self._target, self._runner = milvus, source, target, runner
        self._executor, self._report = executor, report
        self._skipped: set[tuple[str, str]] = set()  # (id, sha256)

    def differences(self) -> list[str]:
        """Delete from the target what the source has no more; return the ids of what is to be made there."""
        here = _walk(self._milvus, self._target)
        there = next(here, None)
        todo, gone = [], []
        for row in _walk(self._milvus, self._source):
            while there is not None and there["id"] < row["id"]:
                gone.append(there["id"])
                there = next(here, None)
            same = there is not None and there["id"] == row["id"]
            if not (same and there == row) and (row["id"], row["sha256"]) not in self._skipped:
                todo.append(row["id"])
            if same:
                there = next(here, None)
        gone += [] if there is None else [there["id"], *(row["id"] for row in here)]
        for ids in batches(gone, _PAGE):
            self._milvus.delete(self._target, ids)
        self._report.total += len(todo)
        return todo

    def fill(self, ids: Sequence[str]) -> None:
        """Make these rows in the target, out of what the source has now."""
        rows = self._milvus.rows(self._source, ids, [*RECORD, "picture"])
        known = self._milvus.rows(self._target, ids, ["id", "sha256", "vector"])
        fresh: list[Row] = []
        ready: list[Row] = []
        for row_id, row in rows.items():
            row |= {**searchable(row["metadata"]), "picture": list(row["picture"])}
            old = known.get(row_id)
            if old is not None and old["sha256"] == row["sha256"]:  # only its metadata was changed
                ready.append(row | {"vector": old["vector"]})
            else:
                fresh.append(row)
        pictures: list[NDArray[np.uint8]] = []
        embedded: list[Row] = []
        for row, decoded in zip(fresh, self._executor.map(_decode, fresh), strict=True):
            if isinstance(decoded, str):
                self._skipped.add((row["id"], row["sha256"]))
                self._report.skipped.append((key_of(row["id"]), decoded))
            else:
                pictures.append(decoded)
                embedded.append(row)
        if pictures:
            vectors = encode_vectors(embed(self._runner, pictures)).astype(np.float32)
            ready += [row | {"vector": vector} for row, vector in zip(embedded, vectors, strict=True)]
        self._milvus.write(self._target, ready)
        self._report.embedded += len(ready)


def _walk(milvus: Milvus, collection: str) -> Iterator[Row]:
    for rows in milvus.pages(collection, _COMPARED, size=_PAGE):
        yield from rows


def _decode(row: Row) -> NDArray[np.uint8] | str:
    """Return the picture's pixels, uint8 [256, 256, 3], or why there are none."""
    picture = picture_of(row)
    if picture is None:
        return "no picture of it is stored"
    try:
        return inspect_and_prepare(picture).pixels
    except ImageError as error:
        return f"its stored picture is damaged: {error}"
