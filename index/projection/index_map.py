"""Positions of the images of an index, which follow its changes.

Guarantees: an image keeps its position until it is replaced, or the map is computed again. A new image is placed by its
principal components, or, in a map of t-SNE, between the images of the map that are nearest to it. `update` can be
stopped at any moment; the next call continues.
Out of scope: computing t-SNE (tsne.py), files (map_file.py), threads.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.interface import ImageIndex
from index.projection.plane import FIT_SAMPLE, Floats, Plane

_READ: Final = 512  # vectors in one call
_NEIGHBORS: Final = 5
_BLOCK: Final = 256
Stopped = Callable[[], bool]


class Method(StrEnum):
    """How the positions were computed."""

    PCA = "pca"
    TSNE = "tsne"


@dataclass(slots=True)
class IndexMap:
    """A map.

    fitted: number of images when the plane was fitted. rows: {key: row}. hashes: SHA-256 of each row's image.
    components: float32 [n, components]. positions: float32 [n, 2]. computed: number of leading rows whose positions
    were computed together, among which later ones are placed; 0 with PCA. created: in seconds since 1970.
    """

    plane: Plane
    fitted: int
    method: Method = Method.PCA
    created: float = 0.0
    computed: int = 0
    rows: dict[str, int] = field(default_factory=dict)
    hashes: list[str] = field(default_factory=list)
    components: Floats = field(default_factory=lambda: np.empty((0, 0), np.float32))
    positions: Floats = field(default_factory=lambda: np.empty((0, 2), np.float32))

    @classmethod
    def fit(cls, index: ImageIndex, keys: Sequence[str], created: float) -> IndexMap | None:
        """Return an empty map for these images; None if none of them exists."""
        rng = np.random.default_rng(0)
        sample = np.sort(rng.permutation(len(keys))[:FIT_SAMPLE])
        found = _read(index, [keys[number] for number in sample])
        if not found:
            return None
        plane = Plane.fit(np.stack([*found.values()]))
        empty = np.empty((0, plane.axes.shape[1]), np.float32)
        return cls(plane, len(keys), created=created, components=empty)

    @property
    def outgrown(self) -> bool:
        """Whether the axes of PCA were fitted to less than half of the images."""
        return self.method is Method.PCA and len(self.rows) > 2 * self.fitted

    def update(
        self, index: ImageIndex, keys: Sequence[str], hashes: Sequence[str], stopped: Stopped = lambda: False
    ) -> None:
        """Place those images that the map does not have, in this order; stop early once `stopped()` is true."""
        missing = [
            (key, digest)
            for key, digest in zip(keys, hashes, strict=True)
            if (row := self.rows.get(key)) is None or self.hashes[row] != digest
        ]
        components, positions = [self.components], [self.positions]
        for start in range(0, len(missing), _READ):
            if stopped():
                break
            batch = dict(missing[start : start + _READ])
            found = _read(index, list(batch))
            if not found:
                continue
            components.append(self.plane.project(np.stack([*found.values()])))
            positions.append(self._place(components[-1]))
            for key in found:
                self.rows[key] = len(self.hashes)
                self.hashes.append(batch[key])
        self.components, self.positions = np.concatenate(components), np.concatenate(positions)
        if len(self.hashes) > 2 * len(self.rows) + 1000:
            self._keep(self.rows)

    def forget(self, keys: Sequence[str]) -> None:
        """Forget the images that are not among `keys`, unless they are few."""
        if len(self.rows) > len(keys) * 1.1 + 1000:
            present = set(keys)
            self._keep([key for key in self.rows if key in present])

    def replace(self, keys: Sequence[str], positions: Floats, created: float) -> None:
        """Use the positions of t-SNE for these images, float32 [n, 2], and forget the others."""
        self._keep(keys)
        self.positions, self.computed = positions, len(keys)
        self.method, self.created = Method.TSNE, created

    def _keep(self, keys: Sequence[str] | dict[str, int]) -> None:
        """Keep the rows of these keys only. Rows among which others are placed stay in front."""
        order = sorted(self.rows[key] for key in keys) if self.computed else [self.rows[key] for key in keys]
        names = {row: key for key, row in self.rows.items()}
        self.computed = int(np.searchsorted(order, self.computed)) if self.computed else 0
        self.rows = {names[row]: number for number, row in enumerate(order)}
        self.hashes = [self.hashes[row] for row in order]
        self.components, self.positions = self.components[order], self.positions[order]

    def _place(self, components: Floats) -> Floats:
        if not self.computed:
            return components[:, :2] * np.float32(self.plane.scale)
        known, positions = self.components[: self.computed], self.positions[: self.computed]
        lengths = (known**2).sum(1)
        placed = np.empty((len(components), 2), np.float32)
        for start in range(0, len(components), _BLOCK):
            own = components[start : start + _BLOCK]
            squared = np.maximum(lengths - 2 * (own @ known.T) + (own**2).sum(1)[:, None], 0)
            count = min(_NEIGHBORS, len(known))
            near = np.argpartition(squared, count - 1, axis=1)[:, :count]
            weights = 1 / (np.take_along_axis(squared, near, axis=1) + np.float32(1e-6))
            weights /= weights.sum(axis=1, keepdims=True)
            placed[start : start + _BLOCK] = (positions[near] * weights[:, :, None]).sum(axis=1)
        return placed


def _read(index: ImageIndex, keys: Sequence[str]) -> dict[str, NDArray[np.float16]]:
    """Return the vectors of the images that exist, in the order of `keys`."""
    found: dict[str, NDArray[np.float16]] = {}
    for start in range(0, len(keys), _READ):
        part = keys[start : start + _READ]
        vectors = index.existing_vectors(part)
        found |= {key: vectors[key] for key in part if key in vectors}
    return found
