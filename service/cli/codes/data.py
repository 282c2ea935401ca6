"""Reads a sample of an index's images for `fc7 codes evaluate`: vectors, classes and raw pixels."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from io import BytesIO
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.errors import PictureNotFoundError
from index.local.index import LocalImageIndex

SIDE: Final = 32  # pixels, as in CIFAR-10
_PAGE: Final = 1000


@dataclass(frozen=True, slots=True)
class Sample:
    """n images of an index. pixels is None if they were not requested or an image has no stored picture."""

    keys: list[str]
    vectors: NDArray[np.float32]  # [n, 4096]
    classes: NDArray[np.int64] | None  # [n]; None for fewer than two classes
    pixels: NDArray[np.float32] | None  # [n, 3072], from 0 to 255


def collect(index: LocalImageIndex, field: str | None, limit: int, seed: int, *, pixels: bool) -> Sample:
    """Return up to `limit` images that have a vector.

    field: the metadata field with the class; None for the folder in the key. pixels: read the stored pictures too.
    """
    found: list[tuple[str, str]] = []
    cursor = None
    while True:
        page = index.list(_PAGE, cursor)
        for image in page.images:
            name = image.key.rpartition("/")[0] if field is None else str(image.metadata.get(field, ""))
            found.append((image.key, name))
        cursor = page.next_cursor
        if cursor is None:
            break
    order = np.random.default_rng(seed).permutation(len(found))[:limit]
    chosen = [found[number] for number in np.sort(order)]
    vectors = index.vectors([key for key, _ in chosen])
    kept = [(key, name) for key, name in chosen if key in vectors]
    names = sorted({name for _, name in kept})
    classes = np.array([names.index(name) for _, name in kept], np.int64) if len(names) > 1 else None
    rows = np.array([vectors[key] for key, _ in kept], np.float32).reshape(len(kept), -1)
    keys = [key for key, _ in kept]
    return Sample(keys, rows, classes, _raw_pixels(index, keys) if pixels else None)


def _raw_pixels(index: LocalImageIndex, keys: Sequence[str]) -> NDArray[np.float32] | None:
    """Return the stored pictures at 32x32, float32 [n, 3072] from 0 to 255, or None if an image has no picture."""
    rows = np.empty((len(keys), 3 * SIDE * SIDE), np.float32)
    try:
        for number, key in enumerate(keys):
            with Image.open(BytesIO(index.picture(key))) as picture:
                small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
            rows[number] = np.asarray(small, np.float32).reshape(-1)
    except PictureNotFoundError:
        return None
    return rows
