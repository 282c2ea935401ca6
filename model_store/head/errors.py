"""Errors of fitting a head."""

from __future__ import annotations

from dataclasses import dataclass

from model_store.errors import Fc7Error


class HeadError(Fc7Error):
    """The last layer cannot be fitted to these labels."""


@dataclass(eq=False)
class TooFewLabelsError(HeadError):
    """Some labels have too few images. `labels` says which, and how many each needs."""

    labels: str
    least: int
    message = (
        "A class needs at least {least} labeled images that are not copies of each other: {labels}. Label more images, "
        "or leave these classes out (skip_small, --skip-small)."
    )


@dataclass(eq=False)
class OneClassError(HeadError):
    """All usable images have the same label."""

    label: str
    images: int
    message = (
        "All {images:,} labeled images are of the class {label!r}, but a classifier needs at least two classes. Label "
        "images of another class."
    )


@dataclass(eq=False)
class UnlabelledError(HeadError):
    """No image has a label and a vector. `reason` says which of them is missing."""

    field: str
    reason: str
    message = (
        "No image can be used: {reason}. Give indexed images a label in the metadata field {field}: "
        "PATCH /v1/images, or fc7 index label KEY... LABEL."
    )


@dataclass(eq=False)
class HeadGraphError(HeadError):
    """The graph of a version has another structure than fc7 writes."""

    model: str
    reason: str
    message = "The last layer of {model} cannot be replaced: {reason}. Export or import the model again with this fc7."
