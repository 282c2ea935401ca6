"""Make the reference for novelty while a version is published: fit it to training images, calibrate it on others.

Guarantees: no image is used both for the reference and for the percentiles, because a training image is nearer to the
training images than any new one. The vectors are those that the graph computes, in f32.
Out of scope: measuring the novelty of an image (`model_store.novelty`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.decoder.limits import DecodeLimits
from model_store.errors import DatasetError
from model_store.image import views
from model_store.novelty.fit import MAX_IMAGES, calibrated, fit
from model_store.novelty.reference import ACCEPTED, NEIGHBOR, NOVELTY_FILE, Floats, Reference, load_reference
from model_store.runtime.runner import Outputs, Runner, average_views
from model_store.training.data.image_file import ImageFile
from model_store.training.evaluate import Predictor, RunnerPredictor, SplitImages

BATCH: Final = 16
_MAX_HELD_OUT: Final = 2_000  # images for the percentiles of an imported net
_MAX_DIFFERENCE: Final = 0.01  # in the share of unknown images, up to which a precision uses the reference of fp32
_SHARES: Final = (0.5, 0.9, ACCEPTED, 0.99)  # whose distances are in the manifest


class NoveltyBuilder:
    """Fits a reference, collects validation results with `add`, and writes `novelty.npz`."""

    def __init__(
        self,
        runner: Runner,
        training: SplitImages | None,
        progress: Callable[[int, int], None] = lambda *_: None,
        *,
        views: int = 1,
    ) -> None:
        """training: images for the reference; None for a version without one. progress: called with (done, total).

        views: number of views of the evaluation that is observed.
        """
        self._runner, self._views = runner, views
        self._reference: Reference | None = None
        self._training_images = 0
        self._distances: list[Floats] = []
        self._predicted: list[NDArray[np.int64]] = []
        vectors = [] if training is None else list(_vectors(runner, training, progress))
        if vectors:
            self._training_images = sum(len(rows) for rows in vectors)
            with suppress(ValueError):  # values that are not finite: the parity check has rejected the net by now
                self._reference = fit(np.concatenate(vectors))

    def add(self, outputs: Outputs) -> None:
        """Add the results of validation images: one row for each, averaged over the views."""
        if self._reference is not None:
            self._distances.append(self._reference.distances_of(outputs.fc7))
            self._predicted.append(outputs.probabilities.argmax(axis=1))

    def predictor(self, view_count: int) -> Predictor:
        """Return a predictor for an evaluation; with the observed number of views, it calls `add` for all images."""
        if view_count == self._views:
            return ObservedPredictor(self._runner, view_count, self.add)
        return RunnerPredictor(self._runner)

    def write(self, folder: Path) -> dict[str, Any]:
        """Write `novelty.npz` into `folder`. Returns the entry `novelty` of the metrics, or {} without a reference."""
        if self._reference is None or not self._distances:
            return {}
        distances, predicted = np.concatenate(self._distances), np.concatenate(self._predicted)
        reference = calibrated(self._reference, distances, predicted, self._runner.classes)
        (folder / NOVELTY_FILE).write_bytes(reference.to_bytes())
        return {
            "novelty": {
                "neighbor": NEIGHBOR,
                "training_images": self._training_images,
                "validation_images": len(distances),
                "distances": {str(share): reference.distance_at(share) for share in _SHARES},
            }
        }


class PrecisionNovelty:
    """Decides from validation images whether another precision can use the reference of fp32 as it is.

    It can if about as many of them are unknown as in fp32. Otherwise, it gets a copy with its own distances.
    """

    def __init__(self, artifact: Artifact) -> None:
        """artifact: the version in fp32. Raises the errors of `load_reference`."""
        self._reference = load_reference(artifact)
        self._distances: tuple[list[Floats], list[Floats]] = ([], [])
        self._predicted: list[NDArray[np.int64]] = []
        self._classes = len(artifact.labels)

    def add(self, expected: Outputs, actual: Outputs) -> None:
        """Add the outputs of validation images, in fp32 and in the other precision."""
        if self._reference is not None:
            for distances, outputs in zip(self._distances, (expected, actual), strict=True):
                distances.append(self._reference.distances_of(outputs.fc7))
            self._predicted.append(actual.probabilities.argmax(axis=1))

    def write(self, folder: Path) -> dict[str, Any]:
        """Write `novelty.npz` into the precision's `folder` if it needs its own. Returns the metrics of the precision.

        `unknown`, `unknown_fp32`: shares of the images that are unknown by the reference of fp32.
        """
        if self._reference is None or not self._predicted:
            return {}
        first, second = (np.concatenate(distances) for distances in self._distances)
        shares = [float((self._reference.percentiles_of(each) > 100 * ACCEPTED).mean()) for each in (first, second)]
        own = abs(shares[1] - shares[0]) > _MAX_DIFFERENCE
        if own:
            reference = calibrated(self._reference, second, np.concatenate(self._predicted), self._classes)
            (folder / NOVELTY_FILE).write_bytes(reference.to_bytes())
        return {"novelty": {"own_reference": own, "unknown": shares[1], "unknown_fp32": shares[0]}}


class ObservedPredictor:
    """A `Predictor` that runs a version and passes the outputs of each image, averaged over its views, to `observe`."""

    def __init__(self, runner: Runner, view_count: int, observe: Callable[[Outputs], None]) -> None:
        self.name, self.labels = runner.artifact.id, runner.artifact.labels
        self._runner, self._views, self._observe = runner, view_count, observe

    def both(self, pixels: NDArray[np.uint8]) -> tuple[Floats, Floats]:
        """uint8 [n, 224, 224, 3] -> (probabilities [n, classes], fc7 [n, neurons]), float32."""
        outputs = self._runner.run(pixels)
        self._observe(Outputs(*(average_views(values, self._views) for values in outputs)))
        return outputs.probabilities, outputs.fc7


def training_images(
    sources: Sequence[Path], evaluated: SplitImages, limits: DecodeLimits | None = None
) -> SplitImages | None:
    """Return at most 4,000 training images of the first of `sources` that has any besides `evaluated`, or None."""
    taken = {_place(image) for image in evaluated.files}
    for source in sources:
        with suppress(DatasetError, OSError):
            images = SplitImages(source, "train", limits)
            images = images.only([image for image in images.files if _place(image) not in taken])
            if len(images):
                return images.spread(MAX_IMAGES)
    return None


def held_out(images: SplitImages) -> tuple[SplitImages, SplitImages]:
    """Divide images without a split: two of three for the reference, the others for the percentiles."""
    numbered = list(enumerate(images.files))
    return (
        images.only([image for number, image in numbered if number % 3 != 1]).spread(MAX_IMAGES),
        images.only([image for number, image in numbered if number % 3 == 1]).spread(_MAX_HELD_OUT),
    )


def reference_of_photographs(runner: Runner, photographs: SplitImages, folder: Path) -> dict[str, Any]:
    """Make the reference of an imported net from photographs like those that it will see. Returns as `write`."""
    training, others = held_out(photographs)
    builder = NoveltyBuilder(runner, training)
    for pixels, _ in others.batches(BATCH):
        builder.add(runner.run(views(pixels)))
    return builder.write(folder)


def _place(image: ImageFile) -> tuple[Path, int]:
    return image.file.absolute(), image.offset  # without resolving links, which is slow for a million files


def _vectors(runner: Runner, images: SplitImages, progress: Callable[[int, int], None]) -> Iterator[Floats]:
    """Yield fc7 of the images that can be read, float32 [n,4096], in batches."""
    done = 0
    for pixels, _ in images.batches(BATCH):
        yield runner.run(views(pixels)).fc7
        done += len(pixels)
        progress(done, len(images))
