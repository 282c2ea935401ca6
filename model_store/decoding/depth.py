"""Gray values of more than 8 bits, scaled to 0-255.

Guarantees: 16-bit unsigned values keep their scale. Of wider types the range is known only from the values, so two
pictures of the same file format may be scaled differently.
References: none; the formats do not define the value of white for signed integers, 32-bit integers and floats.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

_UINT32_MAX = 2**32 - 1


def value_range(bands: Iterable[NDArray[np.generic]]) -> tuple[float, float]:
    """Return the values of black and white for a picture of signed, 32-bit or floating-point values.

    The range is the smallest of 0-1 (floats only), 0-255, 0-65535 and, for unsigned 32-bit values of which some have
    the highest bit set, 0-4294967295 that contains all values, and otherwise the minimum to the maximum of the picture.
    """
    ends: list[float] = []
    kind = ""
    for band in bands:
        values = finite(band)
        ends += [float(values.min()), float(values.max())]
        kind = band.dtype.kind
    low, high = min(ends), max(ends)
    if low < 0:
        return low, high
    for white in (1.0, 255.0, 65535.0):
        if high <= white and (white > 1 or kind == "f"):
            return 0.0, white
    if kind == "u" and high > _UINT32_MAX // 2:
        return 0.0, float(_UINT32_MAX)
    return low, high


def eight_bits(values: NDArray[np.generic], span: tuple[float, float]) -> NDArray[np.uint8]:
    """Scale values linearly, from `span` (the values of black and white) to 0-255. NaN and infinity become 0."""
    low, high = span
    if values.dtype.kind == "u" and values.dtype.itemsize == 2 and span == (0.0, 65535.0):
        return ((values.astype(np.uint32) + 128) // 257).astype(np.uint8)
    scaled = finite(values).astype(np.float64)
    scaled -= low
    scaled *= 255 / max(high - low, 1e-30)  # equal values are black
    return np.rint(np.clip(scaled, 0, 255, out=scaled), out=scaled).astype(np.uint8)


def finite(values: NDArray[np.generic]) -> NDArray[np.generic]:
    """Return the values with NaN and infinity replaced by 0."""
    if values.dtype.kind != "f" or np.isfinite([values.min(), values.max()]).all():
        return values
    return np.asarray(np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0))
