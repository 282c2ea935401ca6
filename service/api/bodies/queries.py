"""Searches: the vector that each one looks for.

A search by examples looks for the mean of the positive vectors or, with negative ones, for 2 x mean(positive) -
mean(negative): the strategy `average_vector` of Qdrant.

Out of scope: computing the vectors of images, and reading those of keys.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from service.api.bodies.body import Body, Example
from service.api.bodies.json_images import check_vector
from service.errors import ParameterError


@dataclass(frozen=True, slots=True)
class Queries:
    """The searches of a request. Each one has positive and negative examples.

    Searches that are not `combined` have one example each, and their results are about this one.
    """

    searches: Sequence[tuple[Sequence[Example], Sequence[Example]]]
    combined: bool

    @classmethod
    def of(cls, body: Body) -> Queries:
        """Return the searches of a body: one for each image or vector, or one for all examples."""
        if body.positive or body.negative:
            return cls([(body.positive, body.negative)], True)
        single = [Example(image=image) for image in body.images] + [Example(vector=vector) for vector in body.vectors]
        return cls([([example], []) for example in single], False)

    @property
    def examples(self) -> list[Example]:
        """All examples, in order."""
        return [example for positive, negative in self.searches for example in (*positive, *negative)]

    @property
    def images(self) -> list[bytes]:
        """The images among the examples."""
        return [example.image for example in self.examples if example.image is not None]

    @property
    def keys(self) -> list[str]:
        """The keys among the examples, each of them once."""
        return list(dict.fromkeys(example.key for example in self.examples if example.key is not None))

    @property
    def has_vectors(self) -> bool:
        """Whether a vector is among the examples."""
        return any(example.vector is not None for example in self.examples)

    def vectors(
        self, images: Sequence[NDArray[np.float32]], stored: Mapping[str, NDArray[np.float16]]
    ) -> NDArray[np.float32]:
        """Return the vector of each search, float32 [n, 4096].

        images: the vectors of `images`. stored: those of `keys`. Raises ParameterError if a vector cannot be compared.
        """
        rest = iter(images)

        def vector(example: Example) -> NDArray[np.float32]:
            if example.vector is not None:
                return example.vector
            if example.key is None:
                return next(rest)
            if example.key not in stored:
                raise ParameterError("positive", repr(example.key), "images with a vector of the searched model")
            return stored[example.key].astype(np.float32)

        found = []
        for positive, negative in self.searches:
            wanted = np.mean([vector(example) for example in positive], axis=0)
            if negative:
                wanted = 2 * wanted - np.mean([vector(example) for example in negative], axis=0)
            check_vector(wanted, "positive")
            found.append(wanted)
        return np.asarray(found, np.float32)
