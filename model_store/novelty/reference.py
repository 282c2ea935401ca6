"""The reference of a version: a compact sample of its training images, from which the novelty of an image is measured.

Two distances to the 10th nearest training image are measured: in fc7, and in how the image looks (`appearance`). Each
becomes a percentile of the validation images, and the higher one decides. fc7 alone misses sharp photographs where a
net was trained on blurred ones.

The distance in fc7 is Euclidean. fc7 is projected to its main directions (PCA). Of the rest, only the length is kept:
the rests of two images are nearly orthogonal, so the squares of their lengths are added.

Guarantees: the file has at most 3 MB. One image takes less than 1 ms on one core. Every distance and percentile is a
finite number, whatever the vectors are. Only NumPy is needed.
Out of scope: choosing the images (`training/export/novelty.py`), and exact distances to indexed images (`index`).
References: Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors".
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.cores import limit_blas
from model_store.errors import ArtifactFormatError
from model_store.manifest import FEATURES
from model_store.novelty.appearance import NUMBERS, describe

NOVELTY_FILE: Final = "novelty.npz"
NEIGHBOR: Final = 10
ACCEPTED: Final = 0.95  # default share of the validation images to accept
_MAX_BYTES: Final = 16 << 20  # unpacked; about 3 MB are written
_LARGEST: Final = float(np.finfo(np.float32).max)

Floats = NDArray[np.float32]


class Novelty(NamedTuple):
    """The novelty of an image.

    distance: Euclidean distance in fc7 to the 10th nearest training image. percentile: share of the validation images
    that are less unusual than this one, by fc7 or by appearance, 0 to 100.
    """

    distance: float
    percentile: float

    def unknown(self, threshold: float) -> bool:
        """Return whether more than the share `threshold` (0 to 1) of the validation images is less unusual."""
        return self.percentile > 100 * threshold

    def to_dict(self, threshold: float) -> dict[str, float | bool]:
        """Return distance, percentile and unknown, as JSON types. threshold: as of `unknown`."""
        return {**self._asdict(), "unknown": self.unknown(threshold)}


@dataclass(frozen=True)
class Reference:
    """Training images in compact form, and the distances of validation images to them.

    mean: float32 [4096]. directions: float32 [d,4096], orthonormal rows, d may be 0. coordinates: float32 [n,d], the
    training vectors minus the mean along these directions. rests: float32 [n], the squared lengths of what is left.
    looks_mean: float32 [18] and whitening: float32 [18,18], which make descriptions of images comparable. looks:
    float32 [n,18], the training images in that form.
    distances, looks_distances: float32 [m], of validation images in fc7 and in appearance, ascending. scores: float32
    [m], the higher percentile of each validation image, ascending. class_shares: float32 [K], shares of the validation
    images by predicted class.
    """

    mean: Floats
    directions: Floats
    coordinates: Floats
    rests: Floats
    looks_mean: Floats
    whitening: Floats
    looks: Floats
    distances: Floats
    looks_distances: Floats
    scores: Floats
    class_shares: Floats

    def measure(self, fc7: Floats, centers: NDArray[np.uint8]) -> list[Novelty]:
        """Return the novelty of n images.

        fc7: float32 [n,4096], the mean over the views of each image. centers: their center views, uint8 [n,224,224,3].
        """
        distances = self.distances_of(fc7)
        scores = self.scores_of(distances, self.looks_distances_of(centers))
        percentiles = _percentiles(self.scores, scores)
        return [Novelty(*pair) for pair in zip(distances.tolist(), percentiles.tolist(), strict=True)]

    def distances_of(self, fc7: Floats) -> Floats:
        """Return the distances of n vectors, float32 [n,4096], to their 10th nearest training vectors: float32 [n].

        With fewer than 10 training vectors, the farthest one counts.
        """
        centered = fc7 - self.mean
        along = centered @ self.directions.T
        along_squares = np.einsum("ij,ij->i", along, along)
        rests = np.maximum(np.einsum("ij,ij->i", centered, centered) - along_squares, 0)
        squares: Floats = np.matmul(along, self._minus_two_coordinates)
        squares += self._squares
        nearest = _tenth(squares) + along_squares + rests
        distances: Floats = np.sqrt(np.maximum(nearest, 0))
        return np.nan_to_num(distances, nan=_LARGEST, posinf=_LARGEST)

    def looks_distances_of(self, centers: NDArray[np.uint8]) -> Floats:
        """Return the distances in appearance to the 10th nearest training images: float32 [n].

        centers: center views, uint8 [n,224,224,3]. One unit is a usual difference between two training images.
        """
        looks: Floats = np.matmul(describe(centers) - self.looks_mean, self.whitening)
        nearest = _tenth(looks @ self._minus_two_looks + self._looks_squares) + np.square(looks).sum(axis=1)
        distances: Floats = np.sqrt(np.maximum(nearest, 0))
        return distances

    def scores_of(self, distances: Floats, looks_distances: Floats) -> Floats:
        """Return the higher of the percentiles of the two distances: float32 [n], 0 to 100."""
        by_fc7, by_looks = _percentiles(self.distances, distances), _percentiles(self.looks_distances, looks_distances)
        return np.maximum(by_fc7, by_looks).astype(np.float32)

    def unknown_share(self, distances: Floats, looks_distances: Floats, threshold: float = ACCEPTED) -> float:
        """Return the share (0 to 1) of n images that are unknown, from their distances, float32 [n]."""
        percentiles = _percentiles(self.scores, self.scores_of(distances, looks_distances))
        return float((percentiles > 100 * threshold).mean())

    @property
    def validation_percentiles(self) -> NDArray[np.float64]:
        """The percentiles of the validation images themselves: float64 [m], ascending."""
        return _percentiles(self.scores, self.scores)

    def distance_at(self, share: float) -> float:
        """Return the distance in fc7 within which `share` (0 to 1) of the validation images lie."""
        return float(np.quantile(self.distances, share))

    @cached_property
    def _minus_two_coordinates(self) -> Floats:
        return np.ascontiguousarray(-2 * self.coordinates.T)

    @cached_property
    def _squares(self) -> Floats:
        squares: Floats = np.einsum("ij,ij->i", self.coordinates, self.coordinates) + self.rests
        return squares

    @cached_property
    def _minus_two_looks(self) -> Floats:
        return np.ascontiguousarray(-2 * self.looks.T)

    @cached_property
    def _looks_squares(self) -> Floats:
        squares: Floats = np.einsum("ij,ij->i", self.looks, self.looks)
        return squares

    def to_bytes(self) -> bytes:
        """Return the content of `novelty.npz`. Directions, coordinates and looks are rounded to float16."""
        scale = float(np.abs(self.coordinates).max(initial=0)) or 1.0  # float16 ends at 65,504
        file = io.BytesIO()
        np.savez(
            file,
            mean=self.mean,
            directions=self.directions.astype(np.float16),
            coordinates=(self.coordinates / np.float32(scale)).astype(np.float16),
            scale=np.float32(scale),
            rests=self.rests,
            looks_mean=self.looks_mean,
            whitening=self.whitening,
            looks=self.looks.astype(np.float16),
            distances=self.distances,
            looks_distances=self.looks_distances,
            scores=self.scores,
            class_shares=self.class_shares,
        )
        return file.getvalue()

    @classmethod
    def of_bytes(cls, content: bytes) -> Self:
        """Parse the content of `novelty.npz`. Raises ValueError if it is not valid."""
        try:
            with zipfile.ZipFile(io.BytesIO(content)) as archive:
                if sum(member.file_size for member in archive.infolist()) > _MAX_BYTES:
                    raise ValueError(f"it has more than {_MAX_BYTES:,} bytes unpacked")
            with np.load(io.BytesIO(content), allow_pickle=False) as arrays:
                values = {name: arrays[name].astype(np.float32) for name in arrays.files}
            values["coordinates"] = values["coordinates"] * values.pop("scale")
            reference = cls(**{name: np.ascontiguousarray(array) for name, array in values.items()})
        except (KeyError, TypeError, zipfile.BadZipFile) as error:
            raise ValueError(f"it is not a reference of training vectors ({error})") from error
        reference._check()
        return reference

    def _check(self) -> None:
        dimensions, images = len(self.directions), len(self.rests)
        wanted = {
            "mean": (FEATURES,),
            "directions": (dimensions, FEATURES),
            "coordinates": (images, dimensions),
            "rests": (images,),
            "looks_mean": (NUMBERS,),
            "whitening": (NUMBERS, NUMBERS),
            "looks": (images, NUMBERS),
            "distances": (len(self.distances),),
            "looks_distances": (len(self.distances),),
            "scores": (len(self.distances),),
            "class_shares": (len(self.class_shares),),
        }
        for name, shape in wanted.items():
            array: Floats = getattr(self, name)
            if array.shape != shape or not np.isfinite(array).all():
                raise ValueError(f"{name} has the shape {list(array.shape)} or values that are not finite")
        ordered = (self.distances, self.looks_distances, self.scores)
        if not images or not len(self.distances) or any((np.diff(each) < 0).any() for each in ordered):
            raise ValueError("it has no training images, or no ascending distances of validation images")


def _tenth(values: Floats) -> Floats:
    """Return the 10th smallest value of each row, or the largest if there are fewer."""
    position = min(NEIGHBOR, values.shape[1]) - 1
    tenth: Floats = np.partition(values, position, axis=1)[:, position]
    return tenth


def _percentiles(ordered: Floats, values: Floats) -> NDArray[np.float64]:
    """Return the shares (0 to 100) of `ordered` that are less than each value: float64 [n]."""
    return 100.0 * np.searchsorted(ordered, values, side="left") / len(ordered)


def reference_file(artifact: Artifact) -> str | None:
    """Return the path of the reference for the artifact's precision, relative to the version; None if it has none."""
    own = f"{artifact.precision}/{NOVELTY_FILE}"
    return next((name for name in (own, NOVELTY_FILE) if name in artifact.manifest.files), None)


def load_reference(artifact: Artifact) -> Reference | None:
    """Return the reference of a version; None if it was published without one. Also calls `limit_blas`.

    Raises ArtifactCorruptError if the file differs from the manifest, ArtifactFormatError if it is not a reference.
    """
    name = reference_file(artifact)
    if name is None:
        return None
    limit_blas()
    try:
        return Reference.of_bytes(artifact.read(name))
    except ValueError as error:
        raise ArtifactFormatError(artifact.path / Path(name), str(error)) from error
