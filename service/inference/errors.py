"""Errors of explaining answers and of novelty. The others of the package are in `service.errors`.

ServiceError
├── RequestError
│   ├── ClassNotFoundError     the model has no such class
│   └── TooManyImagesError
│       └── OneImageError      an explanation was asked for of several images
├── MemoryShortError
│   └── ExplanationMemoryError not enough memory for the graph for explanations
└── ConflictError
    ├── VectorNotFoundError    an indexed image has no vector of the model
    └── NoReferenceError       the model of the index has no reference for novelty
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from service.errors import ConflictError, MemoryShortError, RequestError, TooManyImagesError


@dataclass(eq=False)
class ClassNotFoundError(RequestError):
    """The model has no class of this name or index. `similar` are class names like it, and `classes` their number."""

    name: str
    model: str
    classes: int
    similar: Sequence[str]

    def __str__(self) -> str:
        names = ", ".join(repr(label) for label in self.similar)
        hint = f"The most similar names are {names}." if names else f"GET /v1/models/{self.model} lists the names."
        return (
            f"{self.model} has no class {self.name[:100]!r}. Give the name of a class, or its index from 0 to "
            f"{self.classes - 1}. {hint}"
        )


@dataclass(eq=False)
class OneImageError(TooManyImagesError):
    """An explanation was asked for of several images."""

    message = "A request to explain has at most {limit} image. Send the others in requests of their own."


class ExplanationMemoryError(MemoryShortError):
    """There is not enough memory to load the graph for explanations."""

    def __str__(self) -> str:
        return (
            f"Loading the graph that explains the answers of {self.model} temporarily needs {self.needed / 1e6:,.0f} "
            f"MB of memory, but only {self.available / 1e6:,.0f} MB are available. Give the service more memory, or "
            "lower FC7_MAX_LOADED."
        )


@dataclass(eq=False)
class VectorNotFoundError(ConflictError):
    """An indexed image has no vector of the model."""

    key: str
    model: str
    message = (
        "The image {key!r} has no vector of {model}, so a distance to it cannot be explained. Add the image again, or "
        "wait until the migration of the index is complete."
    )


@dataclass(eq=False)
class NoReferenceError(ConflictError):
    """The images of the index cannot be ordered by novelty, because their model has no reference."""

    model: str
    message = (
        "{model} was published without a reference for novelty, so the images cannot be ordered by it. fc7 export and "
        "fc7 import --photographs publish versions with one. Activate such a version, or use another order."
    )
