"""Draw a heat map: as a grid of colored cells, or over the crop that the net sees.

Guarantees: brighter means higher, evenly for the eye and in grayscale (the colors of "inferno", by S. van der Walt and
N. Smith, CC0). The pixels under a cold part of an overlay keep their colors.
Out of scope: computing the map (model_store/runtime/explainer.py).
"""

from __future__ import annotations

import io
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from model_store.image import CROP

_INFERNO: Final = (0x000004, 0x1F0C48, 0x550F6D, 0x88226A, 0xBA3655, 0xE35933, 0xF98E09, 0xF9C932, 0xFCFFA4)
_OPACITY: Final = 0.65  # of the hottest cell
_DIGITS: Final = 7  # of a float32 from 0 to 1
_COMPRESSION: Final = 1  # of zlib: the default takes five times as long for 15 % less


def scaled(heat: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the map divided by its largest value, float32, 0 to 1; all 0 if no cell is above 0."""
    largest = float(heat.max())
    return heat / np.float32(largest) if largest > 0 else np.zeros_like(heat)


def to_grid(heat: NDArray[np.float32]) -> list[list[float]]:
    """Return the rows of the scaled map, for JSON."""
    return [[round(value, _DIGITS) for value in row] for row in scaled(heat).tolist()]


def to_png(heat: NDArray[np.float32], pixels: NDArray[np.uint8] | None, description: str) -> bytes:
    """Return a PNG of 224x224 pixels.

    heat: float32 [height, width], at least 0. pixels: the crop to draw over, uint8 [224, 224, 3]; None to draw the
    cells alone. description: stored in the file.
    """
    method = Image.Resampling.NEAREST if pixels is None else Image.Resampling.BILINEAR
    values = np.asarray(Image.fromarray(scaled(heat)).resize((CROP, CROP), method)).clip(0, 1)
    steps = (values * 255).round().astype(np.uint8)
    levels = np.linspace(0, 1, 256, dtype=np.float32)
    picture = Image.fromarray(colored(levels)[steps])
    if pixels is not None:
        opacity = (255 * _OPACITY * np.sqrt(levels)).astype(np.uint8)[steps]
        picture = Image.composite(picture, Image.fromarray(pixels), Image.fromarray(opacity))
    information = PngInfo()
    information.add_itxt("Description", description.encode("utf-8", "replace").decode())
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=_COMPRESSION, pnginfo=information)
    return file.getvalue()


def colored(values: NDArray[np.float32]) -> NDArray[np.uint8]:
    """Return the color of each value from 0 to 1, uint8 [..., 3]."""
    stops = np.linspace(0, 1, len(_INFERNO))
    channels = [np.interp(values, stops, [color >> shift & 0xFF for color in _INFERNO]) for shift in (16, 8, 0)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)
