"""Migrate an index on Milvus to another model: fill its collection from the searched one, then switch.

Guarantees: search uses the previous vectors until every image that can be embedded has a vector of the new model. If
interrupted, the same call resumes. Changes that replicas make meanwhile are found by the next pass; passes are repeated
until one finds no difference.
Out of scope: images without a usable picture. They are listed, and are no longer in the index after the switch.
A replica that does not migrate to this model may change images after the last pass: repeat the call to include these.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field

import numpy as np

from index.bulk.pipeline import batches, decode_picture, embed
from index.bulk.report import ReembedReport, interruptible
from index.errors import FolderError
from index.milvus.client import Milvus
from index.milvus.registry import Registry
from index.milvus.schema import WITH_PICTURE, Row, collection_of, image_schema, key_of, picture_of, searchable
from index.records import MilvusAddress, VectorModel, encode_vectors
from model_store.runtime.runner import Runner

_PAGE = 2000
_COMPARED = ["id", "sha256", "updated"]


def reembed_on_milvus(
    address: MilvusAddress,
    runner: Runner,
    *,
    batch_size: int = 32,
    workers: int = 2,
    progress: Callable[[ReembedReport], None] = lambda _: None,
) -> ReembedReport:
    """Compute every image's vector of the runner's model from its stored picture, then search these vectors.

    As `index.bulk.reembed.reembed`. Raises IndexUnavailableError if there is no index,
    IndexUnreachableError, FolderError if no image could be embedded.
    """
    model = VectorModel(runner.artifact.fingerprint, runner.artifact.embedder)
    with closing(Milvus(address)) as milvus:
        registry = Registry(milvus)
        active = registry.active
        report = ReembedReport()
        if active is None or active.fingerprint == model.fingerprint:
            return report
        source, target = (collection_of(address.name, each.fingerprint) for each in (active, model))
        milvus.open(source, image_schema)
        milvus.open(target, image_schema)
        registry.add_model(model)
        with interruptible(report), ThreadPoolExecutor(workers, "fc7-decode") as executor:
            copy = _CollectionCopy(milvus, source, target, runner, executor, report)
            while outdated := copy.find_outdated():
                for ids in batches(outdated, batch_size):
                    copy.update(ids)
                    progress(report)
        if not report.interrupted:
            if report.skipped and not report.embedded and not milvus.count(target):
                raise FolderError(
                    milvus.uri, "has no stored pictures to embed. Index the images again: fc7 index build DIR --rebuild"
                )
            registry.activate(model)
        return report


@dataclass(slots=True)
class _CollectionCopy:
    """Fills the collection `target` from `source`. skipped: (id, SHA-256) of the rows that cannot be embedded."""

    milvus: Milvus
    source: str
    target: str
    runner: Runner
    executor: ThreadPoolExecutor
    report: ReembedReport
    skipped: set[tuple[str, str]] = field(default_factory=set)

    def find_outdated(self) -> list[str]:
        """Delete the target rows that the source no longer has; return the ids of missing and outdated rows."""
        copied = _rows(self.milvus, self.target)
        copy = next(copied, None)
        outdated, deleted = [], []
        for row in _rows(self.milvus, self.source):
            while copy is not None and copy["id"] < row["id"]:
                deleted.append(copy["id"])
                copy = next(copied, None)
            if copy != row and (row["id"], row["sha256"]) not in self.skipped:
                outdated.append(row["id"])
            if copy is not None and copy["id"] == row["id"]:
                copy = next(copied, None)
        deleted += [] if copy is None else [copy["id"], *(row["id"] for row in copied)]
        for ids in batches(deleted, _PAGE):
            self.milvus.delete(self.target, ids)
        self.report.total += len(outdated)
        return outdated

    def update(self, ids: Sequence[str]) -> None:
        """Write these rows to the target, with the current content of the source."""
        rows = self.milvus.rows(self.source, ids, WITH_PICTURE)
        copies = self.milvus.rows(self.target, ids, ["id", "sha256", "preparation", "vector"])
        to_embed: list[Row] = []
        ready: list[Row] = []
        for row_id, row in rows.items():
            row |= {**searchable(row["metadata"]), "picture": list(row["picture"])}
            copy = copies.get(row_id)
            same = copy is not None and all(copy[name] == row[name] for name in ("sha256", "preparation"))
            if copy is not None and same:  # only the metadata has changed
                ready.append(row | {"vector": copy["vector"]})
            else:
                to_embed.append(row)
        usable = []
        for row, decoded in zip(to_embed, self.executor.map(decode_picture, map(picture_of, to_embed)), strict=True):
            if isinstance(decoded, str):
                self.skipped.add((row["id"], row["sha256"]))
                self.report.skipped.append((key_of(row["id"]), decoded))
            else:
                usable.append((row, decoded))
        if usable:
            vectors = encode_vectors(embed(self.runner, [pixels for _, pixels in usable])).astype(np.float32)
            ready += [row | {"vector": vector} for (row, _), vector in zip(usable, vectors, strict=True)]
        self.milvus.write(self.target, ready)
        self.report.embedded += len(ready)


def _rows(milvus: Milvus, collection: str) -> Iterator[Row]:
    for rows in milvus.pages(collection, _COMPARED, size=_PAGE):
        yield from rows
