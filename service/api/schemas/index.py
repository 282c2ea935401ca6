"""The index: its vector spaces, migration, codes and snapshots."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import Final

from pydantic import BaseModel, Field

from index.catalog.backup import FOLDER
from index.records import IndexStats, SnapshotManifest, Space
from service.indexing.reembedder import MigrationState, Progress

_OF_MANIFEST: Final = ("created", "images", "vectors", "size", "sha256")


class SpaceInfo(BaseModel):
    """A vector space: the vectors of one model.

    `searched`: searches use this space. `kept`: it was searched before and is kept, so that going back to its model is
    immediate.
    """

    model: str
    fingerprint: str
    vectors: int
    missing_vectors: int = Field(description="Number of images without a vector in this space.")
    searched: bool
    kept: bool


class MigrationInfo(BaseModel):
    """Progress of the migration of the index to another model.

    `total`: images that had no vector of the model. `done`: images embedded so far. `skipped`: images that cannot be
    embedded.
    """

    model: str
    state: MigrationState
    total: int
    done: int
    skipped: int
    skipped_keys: dict[str, str] = Field(description="The first skipped images, each with the reason.")
    detail: str


class FastCodeInfo(BaseModel):
    """The short codes of the mode fast.

    `recall`: share of the 10 exact neighbors that it finds, as last measured. `changed`: number of vectors added and
    removed since the codes were learned, relative to the vectors that exist. `learned`: when that was.
    """

    recall: float | None
    changed: float
    learned: datetime


class DeviceInfo(BaseModel):
    """Copies of the index on a CUDA device. The CPU searches the other vectors and codes of `fast`."""

    name: str
    vectors: int
    codes: int
    bytes: int


class IndexInfo(BaseModel):
    """Counts and sizes of the index (in bytes), and the model whose vectors are searched."""

    images: int
    vectors: int
    bytes_on_disk: int
    bytes_in_memory: int
    mode: str
    model: str
    fingerprint: str
    outdated: int = Field(
        description="Number of images that an earlier version of fc7 prepared. They are prepared again when they are "
        "added again: `fc7 index build DIR`."
    )
    missing_vectors: int = Field(
        description="Number of images that searches cannot find, because they have no vector of this model."
    )
    fast: FastCodeInfo | None = Field(description="The short codes of the mode fast. Null if there are none.")
    device: DeviceInfo | None = Field(description="The CUDA device that searches. Null if the CPU does.")
    spaces: list[SpaceInfo]
    migration: MigrationInfo | None = Field(description="The last migration to another model. Null if there was none.")

    @classmethod
    def of(cls, stats: IndexStats, spaces: Sequence[Space], progress: Progress | None) -> IndexInfo:
        """Convert the statistics of an index."""
        return cls(
            **asdict(stats),
            missing_vectors=next((space.missing_vectors for space in spaces if space.active), 0),
            spaces=[SpaceInfo.model_validate(asdict(space) | {"searched": space.active}) for space in spaces],
            migration=None if progress is None else MigrationInfo.model_validate(asdict(progress)),
        )


class SnapshotInfo(BaseModel):
    """A snapshot of the index. `path` is its folder below FC7_HOME; `size` and `sha256` are of its catalog.db."""

    name: str
    path: str
    created: datetime
    images: int
    vectors: int
    size: int
    sha256: str

    @classmethod
    def of(cls, path: Path, manifest: SnapshotManifest) -> SnapshotInfo:
        """Describe the snapshot in the folder `path`."""
        return cls(name=path.name, path=f"{FOLDER}/{path.name}", **manifest.model_dump(include={*_OF_MANIFEST}))


class SnapshotsAnswer(BaseModel):
    """The snapshots, oldest first."""

    snapshots: list[SnapshotInfo]
