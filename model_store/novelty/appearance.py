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
_COLOR_SCALES: Final = (1, 3)
_FLOOR: Final = 0.5  # squared levels; less is rounding
# Luminance, red against green, yellow against blue.
_OPPONENT: Final = np.array([[1 / 3, 1, 0.5], [1 / 3, -1, 0.5], [1 / 3, 0, -1]], np.float32)
_PAIR: Final = np.concatenate([_OPPONENT, _OPPONENT]) / 4  # two neighbors in a sum of two rows -> their mean


def describe(views: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return 18 numbers for each center view, uint8 [n,224,224,3] -> float32 [n,18], mostly logarithms of energies."""
    return np.stack([_describe_one(view) for view in views])


def _describe_one(view: NDArray[np.uint8]) -> NDArray[np.float32]:
    # Rows are added in pairs, then one product adds columns in pairs and mixes the colors: the fastest way in NumPy.
    rows = np.add(view[::2], view[1::2], dtype=np.uint16)
    pixels = np.matmul(rows.reshape(-1, 6).astype(np.float32), _PAIR)
    planes = np.ascontiguousarray(pixels.T).reshape(3, len(rows), -1)
    energies: list[float] = []
    for scale in range(_SCALES):
        measured = planes if scale in _COLOR_SCALES else planes[:1]
        across = _energies(measured[:, :, 1:] - measured[:, :, :-1])
        down = _energies(measured[:, 1:] - measured[:, :-1])
        energies += [across[0], down[0], *(one + other for one, other in zip(across[1:], down[1:], strict=True))]
        rows = planes[:, ::2] + planes[:, 1::2]
        planes = np.divide(rows[:, :, ::2] + rows[:, :, 1::2], 4, dtype=np.float32)
    energies += planes.var(axis=(1, 2)).tolist()
    brightness, *colors = planes.mean(axis=(1, 2)).tolist()
    signed = [float(np.copysign(np.log1p(abs(value)), value)) for value in colors]
    return np.array([*np.log(np.array(energies) + _FLOOR), brightness / 64, *signed], np.float32)


def _energies(differences: NDArray[np.float32]) -> list[float]:
    """Return the mean square of each plane, float32 [c,height,width]."""
    flat = differences.reshape(len(differences), -1)
    means: list[float] = (np.einsum("ij,ij->i", flat, flat) / flat.shape[1]).tolist()
    return means
