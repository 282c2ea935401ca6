"""Migrate an index on Milvus to another model: fill its collection from the searched one, then switch.

Passes over both collections repeat until few differences are left. Then changes are paused (see aliases.py), a last
pass copies what is left, and the switch lets changes continue in the new collection.
Guarantees: until the switch only this process writes to the new collection, and nothing is ever deleted from the
searched one. The last pass compares every image while no replica acknowledges a change, so the new collection has what
was acknowledged. It can be killed anywhere: search is not affected, and the same call resumes.
Out of scope: images without a usable picture. They are listed, and are no longer in the index after the switch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from index.bulk.pipeline import batches, batches_in_threads, decode_picture, embed
from index.bulk.report import ReembedReport, interruptible
from index.errors import FolderError, IndexSwitchedError
from index.milvus.aliases import Aliases
from index.milvus.client import Milvus
from index.milvus.registry import Registry
from index.milvus.schema import WITH_PICTURE, Row, collection_of, image_schema, key_of, picture_of, searchable
from index.records import MilvusAddress, VectorModel, encode_vectors
from model_store.runtime.runner import Runner

_PAGE = 2000
_COMPARED = ["id", "sha256", "updated"]
_LAST_PASS = 64  # differences that are left for the last pass, during which changes are paused


def reembed_on_milvus(
    address: MilvusAddress,
    runner: Runner,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: Callable[[ReembedReport], None] = lambda _: None,
) -> ReembedReport:
    """Compute every image's vector of the runner's model from its stored picture, then search these vectors.

    As `index.bulk.reembed.reembed`. Raises IndexUnavailableError if there is no index or if another process does this
    already, IndexUnreachableError, FolderError if most images could not be embedded, IndexSwitchedError if another
    process allowed changes, or switched to another model, during the last comparison.
    """
    model = VectorModel(runner.artifact.fingerprint, runner.artifact.embedder)
    target = collection_of(address.name, model.fingerprint)
    with closing(Milvus(address)) as milvus:
        registry, aliases = Registry(milvus), Aliases(milvus)
        report = ReembedReport()
        searched = aliases.read()
        if searched is None:
            return report
        with registry.sole_reembedder():
            if searched.collection == target:
                aliases.resume(target)  # if it was killed while it migrated to yet another model
                return report
            for collection in (searched.collection, target):
                milvus.open(collection, image_schema)
            registry.add_model(model)
            with interruptible(report):
                copy = _CollectionCopy(milvus, searched.collection, target, runner, batch_size, workers, report)
                copy.update_all(progress)
                copy.switch(aliases, progress)
            return report


@dataclass(slots=True)
class _CollectionCopy:
    """Fills the collection `target` from `source`. skipped: (SHA-256, reason) of unusable rows, by id."""

    milvus: Milvus
    source: str
    target: str
    runner: Runner
    batch_size: int
    workers: int
    report: ReembedReport
    skipped: dict[str, tuple[str, str]] = field(default_factory=dict)

    def update_all(self, progress: Callable[[ReembedReport], None], left: int = _LAST_PASS) -> None:
        """Repeat passes until one finds at most `left` outdated rows, and update these too."""
        while True:
            outdated = self.find_outdated()
            with batches_in_threads(self.prepare, outdated, size=self.batch_size, workers=self.workers) as results:
                for rows, skipped in results:
                    self.write(rows, skipped)
                    progress(self.report)
            if len(outdated) <= left:
                return

    def switch(self, aliases: Aliases, progress: Callable[[ReembedReport], None]) -> None:
        """Pause changes, copy what is left, and search the target.

        Raises FolderError if most images would no longer be found, IndexSwitchedError if another process ended the
        pause.
        """
        rows = self.milvus.count(self.source)
        if 2 * len(self.skipped) > rows:
            raise FolderError(
                self.milvus.uri,
                f"has no usable picture of {len(self.skipped)} of its {rows} images, so it still uses the previous "
                "vectors. Index the images again: fc7 index build DIR --rebuild",
            )
        aliases.pause(self.source)
        try:
            self.update_all(progress, left=0)
            switched = aliases.resume(self.target)
        except BaseException:
            aliases.resume(self.source)
            raise
        if not switched:
            # Not tried again here: a call that timed out must not take effect during another pause.
            raise IndexSwitchedError(
                self.milvus.uri,
                "or changes were allowed again, because this command seemed dead for a minute",
            )

    def find_outdated(self) -> list[str]:
        """Delete the target rows that the source does not have; return the ids of missing and outdated rows."""
        copied = _rows(self.milvus, self.target)
        copy = next(copied, None)
        outdated, deleted = [], []
        for row in _rows(self.milvus, self.source):
            while copy is not None and copy["id"] < row["id"]:
                deleted.append(copy["id"])
                copy = next(copied, None)
            if copy != row and self.skipped.get(row["id"], ("",))[0] != row["sha256"]:
                outdated.append(row["id"])
            if copy is not None and copy["id"] == row["id"]:
                copy = next(copied, None)
        deleted += [] if copy is None else [copy["id"], *(row["id"] for row in copied)]
        for ids in batches(deleted, _PAGE):
            self.milvus.delete(self.target, ids)
        self.report.total += len(outdated)
        return outdated

    def prepare(self, ids: list[str]) -> tuple[list[Row], dict[str, tuple[str, str]]]:
        """Return these rows of the source as they must be in the target, and the unusable ones, as in `skipped`."""
        rows = self.milvus.rows(self.source, ids, WITH_PICTURE)
        copies = self.milvus.rows(self.target, ids, ["id", "sha256", "preparation", "vector"])
        ready: list[Row] = []
        usable: list[Row] = []
        pixels: list[NDArray[np.uint8]] = []
        skipped: dict[str, tuple[str, str]] = {}
        for row_id, row in rows.items():
            row |= {**searchable(row["metadata"]), "picture": list(row["picture"])}
            copy = copies.get(row_id)
            if copy is not None and all(copy[name] == row[name] for name in ("sha256", "preparation")):
                ready.append(row | {"vector": copy["vector"]})  # only the metadata has changed
                continue
            decoded = decode_picture(picture_of(row))
            if isinstance(decoded, str):
                skipped[row_id] = (row["sha256"], decoded)
            else:
                usable.append(row)
                pixels.append(decoded)
        if usable:
            vectors = encode_vectors(embed(self.runner, pixels)).astype(np.float32)
            ready += [row | {"vector": vector} for row, vector in zip(usable, vectors, strict=True)]
        return ready, skipped

    def write(self, rows: Sequence[Row], skipped: Mapping[str, tuple[str, str]]) -> None:
        """Write these rows to the target, and list the unusable ones."""
        self.milvus.delete(self.target, list(skipped))  # vectors of files that these have replaced
        self.milvus.write(self.target, rows)
        for row in rows:
            self.skipped.pop(row["id"], None)
        self.skipped |= skipped
        self.report.skipped = [(key_of(row_id), reason) for row_id, (_, reason) in self.skipped.items()]
        self.report.embedded += len(rows)


def _rows(milvus: Milvus, collection: str) -> Iterator[Row]:
    for rows in milvus.pages(collection, _COMPARED, size=_PAGE):
        yield from rows
