"""What an index can do, wherever it keeps its images: the interface that the service and the command line use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from index.filters import Where
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
)
from index.search.searcher import Mode

# Named, because inside the classes `list` is their method.
Outcomes = list[AddOutcome]
Neighbours = list[Neighbour]
Answers = list[Neighbours]
Pairs = list[NearPair]
Update = Callable[[dict[str, Any]], Mapping[str, Any]]


class ImageIndex(Protocol):
    """What an index can do, wherever it keeps its images. All methods are thread-safe; a context manager."""

    @property
    def searched(self) -> VectorModel:
        """The model whose vectors search compares."""

    @property
    def wanted(self) -> Sequence[VectorModel]:
        """The models of which an image that is added is to have a vector, the searched one first."""

    def describe(self) -> Sequence[Space]:
        """Return the vectors that there are, by model."""

    def add_many(self, images: Sequence[NewImage]) -> Outcomes:
        """Add or replace all of `images`, or none of them when one is refused."""

    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """Return {key: sha256} of those among `keys` that have a vector of this index's model."""

    def get(self, key: str) -> ImageRecord:
        """Return one image's record, or raise KeyNotFoundError."""

    def contains(self, key: str) -> bool:
        """Tell whether an image has this key."""

    def picture(self, key: str) -> bytes:
        """Return the stored 256x256 JPEG, or raise KeyNotFoundError or PictureNotFoundError."""

    def list(self, limit: int = 100, cursor: str | None = None, *, where: Where | None = None) -> Page:
        """Return a page of those images that fit, in an order that no change disturbs: of their adding, or of keys."""

    def delete(self, key: str) -> None:
        """Delete one image, or raise KeyNotFoundError."""

    def delete_where(self, where: Where) -> int:
        """Delete the images that fit; return how many."""

    def change_metadata(self, key: str, update: Update) -> ImageRecord:
        """Replace an image's metadata by `update` of it, or raise KeyNotFoundError or MetadataError."""

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
        """Return the `k` nearest of those images that fit to each vector, float32 [n, 4096], nearest first.

        fingerprint: of the model that made the vectors; the searched one by default.
        """

    def similar(self, key: str, k: int, *, where: Where | None = None, mode: Mode | None = None) -> Neighbours:
        """Return the `k` images that fit and are nearest to an indexed one, itself left out."""

    def duplicates(
        self, threshold: float, limit: int, *, where: Where | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> Pairs:
        """Return the nearest `limit` pairs of images that fit and are at most `threshold` apart, nearest first."""

    def mode(self, asked: Mode | None = None, *, fingerprint: str | None = None) -> Mode:
        """Return how a search that asks for this mode is done now in a model's space, or raise ModeUnavailableError."""

    def snapshot(self, target: Path) -> SnapshotManifest:
        """Copy the index, as it is now, into the new folder `target`, while others write."""

    def stats(self) -> IndexStats:
        """Return counts and sizes."""

    def close(self) -> None:
        """Finish what is running and let the index go."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...
