"""Describe how an image looks, without the net: sharpness at four scales, contrast, colors.

A net that was trained on blurred or gray pictures has hardly any use for sharp edges and colors, so photographs that
have them can be near its training images in fc7. These few numbers differ by much for such photographs.

Guarantees: all numbers are finite. Details of one pixel are left out, because they depend on the compression of a file.
Out of scope: what is in the image.
"""

from __future__ import annotations

from typing import Final

import numpy as np
from numpy.typing import NDArray

NUMBERS: Final = 18
_SCALES: Final = 4  # 2, 4, 8 and 16 pixels
_COLOR_SCALES: Final = (0, 2)
_FLOOR: Final = 0.5  # squared levels; less is rounding
# Luminance, red against green, yellow against blue.
_OPPONENT: Final = np.array([[1 / 3, 1, 0.5], [1 / 3, -1, 0.5], [1 / 3, 0, -1]], np.float32)


def describe(views: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 18 numbers for each center view, uint8 [n,224,224,3] -> float32 [n,18], mostly logarithms of energies."""
    return np.stack([_describe_one(view) for view in views])


def _describe_one(view: NDArray[np.uint8]) -> NDArray[np.float32]:
    # Sums of slices: NumPy's mean over blocks takes ten times as long.
    halved = view[::2, ::2].astype(np.float32)
    for row, column in ((0, 1), (1, 0), (1, 1)):
        halved += view[row::2, column::2]
    planes = np.ascontiguousarray(((halved * np.float32(0.25)) @ _OPPONENT).transpose(2, 0, 1))
    energies: list[float] = []
    for scale in range(_SCALES):
        for plane in planes if scale in _COLOR_SCALES else planes[:1]:
            across, down = plane[:, 1:] - plane[:, :-1], plane[1:] - plane[:-1]
            squares = [float(np.einsum("ij,ij->", each, each)) / each.size for each in (across, down)]
            energies += squares if plane is planes[0] else [sum(squares)]
        planes = (planes[:, ::2, ::2] + planes[:, 1::2, ::2] + planes[:, ::2, 1::2] + planes[:, 1::2, 1::2]) / 4
    energies += planes.var(axis=(1, 2)).tolist()
    brightness, *colors = planes.mean(axis=(1, 2)).tolist()
    signed = [float(np.copysign(np.log1p(abs(value)), value)) for value in colors]
    return np.array([*np.log(np.array(energies) + _FLOOR), brightness / 64, *signed], np.float32)
