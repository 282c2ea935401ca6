"""The interface that every index implements, on one machine or on Milvus, and the code that both share.

The service and the command line use `ImageIndex` and `VectorSpaces` only, so they never need to know which one is open.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from index import records
from index.catalog.images import Entry
from index.cursor import Listing, Order
from index.duplicates import Duplicates, NearImage, redundant_pairs
from index.facets import Facets
from index.filters import Where
from index.labels import LabelledVectors
from index.points import Points
from index.search.searcher import Mode
from index.vector_spaces import VectorSpaces
from model_store.novelty.reference import Reference


class Neighbours(list[records.Neighbour]):
    """The images nearest to one query, nearest first. mode: the search mode that found them."""

    def __init__(self, neighbours: Iterable[records.Neighbour], mode: Mode) -> None:
        super().__init__(neighbours)
        self.mode = mode


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """Options of a search: the arguments of `ImageIndex.search`."""

    exclude: Sequence[str]
    where: Where | None
    mode: Mode | None
    max_distance: float | None

    def shorten(self, nearest: Iterable[records.Neighbour]) -> Iterator[records.Neighbour]:
        """Leave out the neighbors that are too far away."""
        return (near for near in nearest if self.max_distance is None or near.distance <= self.max_distance)


# These types have names because inside the classes below `list` is a method.
Outcomes = list[records.AddOutcome]
Answers = list[Neighbours]
Vectors = dict[str, NDArray[np.float16]]
MAX_LISTED = 10_000  # near-duplicates in one answer
_ALL = 2**62
_DELETE_BATCH = 100
Stopped = Callable[[], bool]
Update = Callable[[dict[str, Any]], Mapping[str, Any]]


class ImageIndex(ABC):
    """An index of images, wherever it is stored. All methods are thread-safe. It is a context manager."""

    def __init__(self, spaces: VectorSpaces, *, keep_pictures: bool) -> None:
        self.spaces = spaces
        self._keep_pictures = keep_pictures

    @property
    def searched(self) -> records.VectorModel:
        """The model whose vectors are searched."""
        return self.spaces.searched

    @property
    def trouble(self) -> str:
        """Why the last call to the index's server failed; "" if it succeeded, or if there is no server."""
        return ""

    @abstractmethod
    def add_many(self, images: Sequence[records.NewImage]) -> Outcomes:
        """Add or replace all of `images`, or none of them if one is rejected. Returns their outcomes in order.

        An image with the key, bytes, preparation and metadata of a stored one changes nothing.
        Raises InvalidKeyError, MetadataError, ShapeError, VectorError, IndexFullError, IndexReadOnlyError, and
        IndexSwitchedError if the index has switched to another model.
        """

    @abstractmethod
    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """Return {key: sha256} of those `keys` that are complete. Raises InvalidKeyError.

        Complete: the image has a vector of every required model, and was prepared by the current preparation.
        """

    @abstractmethod
    def get(self, key: str) -> records.ImageRecord:
        """Return one image's record. Raises InvalidKeyError, KeyNotFoundError."""

    @abstractmethod
    def vectors(self, keys: Sequence[str], *, fingerprint: str | None = None) -> Vectors:
        """Return {key: float16 [4096]} of those `keys` that have a vector of a model; of the searched one by default.

        Raises InvalidKeyError, KeyNotFoundError, IndexModelError.
        """

    @abstractmethod
    def contains(self, key: str) -> bool:
        """Return whether an image has this key. Raises InvalidKeyError."""

    @abstractmethod
    def picture(self, key: str) -> bytes:
        """Return the stored 256x256 JPEG. Raises InvalidKeyError, KeyNotFoundError, PictureNotFoundError."""

    @abstractmethod
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
        """Return up to `limit` matching images whose keys start with `prefix`, starting after `cursor`.

        order: "added" (first addition), "updated", "key" or "random", or the first three after "-" for descending; by
        default "added", or "key" on Milvus. seed: of "random"; each seed is another order. An image that exists and
        matches during a whole listing appears in it exactly once, unless it changes during a listing by "updated".
        Raises CursorError, FilterError, ValueError unless limit >= 1.
        """

    @abstractmethod
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
        """Return a page as `list` does, by the distance in fc7 to the 10th nearest training image, in this order.

        reference, fingerprint: of the model that is searched. Images without a vector of it are left out.
        listing: with an order by novelty. stopped: called repeatedly; once it returns True, IndexUnavailableError is
        raised, and a repeated call continues to measure the images.
        Raises CursorError, FilterError, IndexModelError, ValueError unless limit >= 1, MilvusUnsupportedError.
        """

    @abstractmethod
    def fields(
        self,
        limit: int,
        *,
        where: Where | None = None,
        field: str | None = None,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Facets:
        """Return the metadata fields of the matching images, with up to `limit` of the most frequent values of each.

        field: only this one. stopped: called repeatedly; once it returns True, IndexUnavailableError is raised.
        Raises FilterError.
        """

    @abstractmethod
    def count(self, where: Where) -> int:
        """Return the number of images that match. Raises FilterError."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Delete one image; no later search finds it. Raises InvalidKeyError, KeyNotFoundError, IndexReadOnlyError."""

    @abstractmethod
    def delete_where(self, where: Where, *, stopped: Callable[[], bool] = lambda: False) -> int:
        """Delete the images that match now, and return how many were deleted; no later search finds them.

        An image is deleted completely or not at all. One that changes meanwhile may remain. stopped: called between
        short transactions; once it returns True, the rest is not deleted, and a repeated call continues.
        Raises FilterError, IndexReadOnlyError.
        """

    @abstractmethod
    def change_metadata(self, key: str, update: Update) -> records.ImageRecord:
        """Replace an image's metadata by `update(metadata)`; no other change of this process can happen in between.

        Raises InvalidKeyError, KeyNotFoundError, MetadataError, and what `update` raises.
        """

    @abstractmethod
    def change_keys(self, keys: Sequence[str], update: Update) -> records.MetadataChanges:
        """Replace the metadata of these images by `update(metadata)`: of all of them, or of none if a key is unknown.

        Raises InvalidKeyError, KeyNotFoundError, MetadataError, and what `update` raises.
        """

    @abstractmethod
    def change_matching(
        self, where: Where, update: Update, *, stopped: Callable[[], bool] = lambda: False
    ) -> records.MetadataChanges:
        """Replace the metadata of the images that match now by `update(metadata)`.

        One that changes meanwhile may be left out. stopped: as in `delete_where`. Raises FilterError, MetadataError,
        and what `update` raises; the images changed before stay changed.
        """

    @abstractmethod
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
        """Return the `k` nearest images of each vector, nearest first; fewer if there are not enough images.

        vectors: float32 [n, 4096]. exclude: a key, or the keys, of images to leave out. where: search only the matching
        images. fingerprint: of the model that computed `vectors`; the searched model by default. mode: as in `mode`.
        max_distance: leave out images that are farther away; Euclidean, in the mode `codes` the Hamming distance.
        Raises ShapeError, VectorError, FilterError, KeyNotFoundError for `exclude`, IndexModelError if images have no
        vectors of that model, ModeUnavailableError, ValueError unless k >= 1.
        """

    @abstractmethod
    def similar(
        self,
        key: str,
        k: int,
        *,
        where: Where | None = None,
        mode: Mode | None = None,
        max_distance: float | None = None,
    ) -> Neighbours:
        """Return the `k` matching images nearest to an indexed image, without that image itself.

        The options are those of `search`.
        Raises InvalidKeyError, KeyNotFoundError, FilterError, ModeUnavailableError, IndexModelError if the image has
        no vector of the searched model.
        """

    @abstractmethod
    def duplicates(
        self,
        threshold: float,
        limit: int,
        *,
        where: Where | None = None,
        images: int = MAX_LISTED,
        stopped: Callable[[], bool] = lambda: False,
    ) -> Duplicates:
        """Return groups of matching images that are linked by pairs at most `threshold` apart, the largest first.

        limit: maximum number of groups. images: maximum number of images listed in them. stopped: called repeatedly;
        once it returns True, the groups found so far are returned. Raises FilterError.
        """

    def delete_duplicates(
        self, threshold: float, *, where: Where | None = None, stopped: Callable[[], bool] = lambda: False
    ) -> int:
        """Delete the images of each group that are at most `threshold` from the one to keep; return how many.

        An image is deleted only if neither it nor the one to keep was replaced or deleted meanwhile. stopped: called
        repeatedly; once it returns True, the rest is not deleted. Raises FilterError, IndexReadOnlyError.
        """
        found = self.duplicates(threshold, _ALL, where=where, images=_ALL, stopped=stopped)
        pairs, deleted = redundant_pairs(found.groups, threshold), 0
        for start in range(0, len(pairs), _DELETE_BATCH):
            if stopped():
                break
            deleted += self._delete_if_unchanged(pairs[start : start + _DELETE_BATCH])
        return deleted

    @abstractmethod
    def _delete_if_unchanged(self, pairs: Sequence[tuple[NearImage, NearImage]]) -> int:
        """Delete the first image of each pair if both still have the same bytes; return how many were deleted."""

    @abstractmethod
    def labelled_vectors(
        self, field: str, *, only_labelled: bool = False, where: Where | None = None, fingerprint: str | None = None
    ) -> Iterator[LabelledVectors]:
        """Yield all matching images, in batches and in the order of listings, with a metadata field and their vectors.

        field: its name as in filters, such as "label" or "camera.model". only_labelled: leave out images without a
        text, number or boolean there. fingerprint: of the model whose vectors to return; the searched one by default.
        During a migration, images can be without a vector of the new model.
        Raises FilterError, also for a name that is not valid, and IndexModelError if the index has no vectors of that
        model. The vectors of an index on Milvus are those of the searched model only.
        """

    @abstractmethod
    def points(self, field: str, *, where: Where | None = None) -> Iterator[Points]:
        """Yield the matching images with a vector of the searched model, in batches, in the order of listings.

        field: the metadata field whose values to return, by its name in filters. Raises FilterError, also for a name
        that is not valid.
        """

    @abstractmethod
    def existing_vectors(self, keys: Sequence[str]) -> Vectors:
        """Return {key: float16 [4096]} of those `keys` that have a vector of the searched model.

        keys: of images that are or were indexed, such as those of `points`.
        """

    @abstractmethod
    def mode(self, requested: Mode | None = None, *, fingerprint: str | None = None) -> Mode:
        """Return the mode that a search with the `requested` mode uses now, among the vectors of a model.

        Raises ModeUnavailableError, IndexModelError.
        """

    @abstractmethod
    def snapshot(self, target: Path) -> records.SnapshotManifest:
        """Copy the index in its current state to the new folder `target`, without blocking writers."""

    @abstractmethod
    def stats(self) -> records.IndexStats:
        """Return counts and sizes."""

    @abstractmethod
    def close(self) -> None:
        """Finish running work and release the index."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _encode(self, images: Sequence[records.NewImage]) -> Sequence[Entry]:
        """Check and encode images before they are stored.

        Raises InvalidKeyError, MetadataError, ShapeError, VectorError.
        """
        names = list(images[0].vectors) if images and images[0].vectors else [self.searched.fingerprint]
        vectors = {
            name: records.encode_vectors([image.vectors.get(name, image.vector) for image in images]) for name in names
        }
        return [
            Entry(
                key=records.check_key(image.sha256 if image.key is None else image.key),
                sha256=image.sha256,
                size=image.size,
                width=image.width,
                height=image.height,
                metadata=None if image.metadata is None else records.encode_metadata(image.metadata),
                picture=image.picture if self._keep_pictures else None,
                vectors={name: rows[number] for name, rows in vectors.items()},
                preparation=image.preparation,
            )
            for number, image in enumerate(images)
        ]


def keys_of(keys: str | Sequence[str]) -> Sequence[str]:
    """Return one key, or several, as a sequence."""
    return [keys] if isinstance(keys, str) else keys


def check_at_least_one(name: str, value: int) -> None:
    """Raise ValueError unless `value` is at least 1."""
    if value < 1:
        raise ValueError(f"{name} is {value}, but must be at least 1.")
