"""What a request body contains: images, keys and vectors.

Out of scope: reading it (see upload.py and json_images.py).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_EXAMPLES: Final = 100  # of a search


@dataclass(frozen=True, slots=True)
class Example:
    """An image of a search: the bytes of a file, the key of an indexed image, or a vector, float32 [4096]."""

    image: bytes | None = None
    key: str | None = None
    vector: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class Body:
    """The images of a request.

    names: the file name of each image; None if the client sent none. metadata: the JSON object of the part with that
    name; None if there was none. positive, negative: the examples of one search, instead of images. vectors: float32
    [4096] each; one search for each, instead of images.
    """

    images: list[bytes]
    names: list[str | None]
    metadata: dict[str, Any] | None = None
    positive: list[Example] = field(default_factory=list)
    negative: list[Example] = field(default_factory=list)
    vectors: list[NDArray[np.float32]] = field(default_factory=list)
