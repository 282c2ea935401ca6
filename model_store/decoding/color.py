"""Convert a small picture to sRGB with the ICC profile of its file.

Guarantees: a profile that is broken, too large, of another color space than the picture, or not usable is ignored.
Profiles that differ from sRGB by less than a viewer can see cost only the computation of their hash. Thread-safe:
Little CMS keeps no state in a transform, and the cache is locked.
Out of scope: profiles of devices with other than 1, 3 or 4 channels, HDR (PQ and HLG), proofing.
References: ICC.1:2022; Little CMS 2 (`cmsDoTransform`); PNG 3, 4.3 (precedence of color chunks); ITU-T H.273.
"""

from __future__ import annotations

import hashlib
import io
import struct
import threading
from collections import OrderedDict
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

# The largest profiles in use, those of printers, have about 3 MB.
MAX_PROFILE_BYTES: Final = 4 << 20
# Two levels of 255. Profiles called sRGB differ from each other by one.
_INVISIBLE = 2
_SPACES = {"RGB": "RGB", "L": "GRAY", "CMYK": "CMYK", "LAB": "Lab"}
_CLASSES = ("mntr", "scnr", "prtr", "spac")


class TransformCache:
    """The transforms of the `capacity` profiles that were used last."""

    def __init__(self, capacity: int) -> None:
        self._capacity = capacity
        self._lock = threading.Lock()
        self._transforms: OrderedDict[tuple[bytes, str], ImageCms.ImageCmsTransform | None] = OrderedDict()

    def get(self, profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
        """Return the transform from `profile` to sRGB for pictures of this mode; None if it would change nothing."""
        key = hashlib.sha256(profile).digest(), mode
        with self._lock:
            if key in self._transforms:
                self._transforms.move_to_end(key)
                return self._transforms[key]
        transform = _transform(profile, mode)  # 1 to 50 ms, so not under the lock
        with self._lock:
            self._transforms[key] = transform
            while len(self._transforms) > self._capacity:
                self._transforms.popitem(last=False)
        return transform


_TRANSFORMS: Final = TransformCache(32)


def to_srgb(picture: Image.Image, profile: bytes | None) -> Image.Image:
    """Convert a picture of any 8-bit mode to sRGB: RGB, or RGBA if it has alpha, which is not changed.

    profile: the ICC profile of the picture. None and profiles that cannot be used mean sRGB.
    """
    alpha = picture.getchannel("A") if picture.mode in ("RGBA", "LA") else None
    opaque = {"RGBA": "RGB", "LA": "L", "RGBX": "RGB", "YCbCr": "RGB"}.get(picture.mode, picture.mode)
    color = picture.convert(opaque)
    transform = None
    if profile and len(profile) <= MAX_PROFILE_BYTES and opaque in _SPACES:
        transform = _TRANSFORMS.get(profile, opaque)
    color = transform.apply(color) if transform else color.convert("RGB")
    if alpha is not None:
        color = color.convert("RGBA")
        color.putalpha(alpha)
    return color


def _transform(data: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    try:
        profile = ImageCms.ImageCmsProfile(io.BytesIO(data))
        usable = profile.profile.xcolor_space.strip() == _SPACES[mode] and profile.profile.device_class in _CLASSES
        if not usable:
            return None
        transform = ImageCms.buildTransform(profile, ImageCms.createProfile("sRGB"), mode, "RGB")
        before = _samples(mode)
        after = np.asarray(transform.apply(before))
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError):
        return None  # a broken profile does not make the picture unusable
    changes = np.abs(after.astype(int) - np.asarray(before.convert("RGB")))
    return transform if changes.max() > _INVISIBLE else None


def _samples(mode: str) -> Image.Image:
    """Return a picture of this mode with colors from all over its space."""
    levels = np.array([0, 16, 48, 80, 112, 144, 176, 208, 240, 255], np.uint8)
    bands = 1 if mode == "L" else len(mode)
    grid = np.stack(np.meshgrid(*[levels] * bands), axis=-1).reshape(1, -1, bands)
    if mode == "L":
        return Image.fromarray(grid[..., 0])
    return Image.frombytes(mode, (grid.shape[1], 1), grid.tobytes())


# Chromaticities x, y of white, red, green and blue. References: H.273, table 2; the numbers are its values.
_D65 = (0.3127, 0.3290)
_PRIMARIES: dict[int, tuple[tuple[float, float], ...]] = {
    1: (_D65, (0.640, 0.330), (0.300, 0.600), (0.150, 0.060)),  # BT.709, as in sRGB
    5: (_D65, (0.640, 0.330), (0.290, 0.600), (0.150, 0.060)),  # BT.601, 625 lines
    6: (_D65, (0.630, 0.340), (0.310, 0.595), (0.155, 0.070)),  # BT.601, 525 lines
    9: (_D65, (0.708, 0.292), (0.170, 0.797), (0.131, 0.046)),  # BT.2020
    12: (_D65, (0.680, 0.320), (0.265, 0.690), (0.150, 0.060)),  # Display P3
}
# Transfer characteristics -> gamma. 0 stands for the curve of sRGB, which browsers also use for BT.709 and relatives.
_TRANSFERS = {1: 0.0, 6: 0.0, 13: 0.0, 14: 0.0, 15: 0.0, 4: 2.2, 5: 2.8, 8: 1.0}
# Linear Bradford transform of cone responses. References: ICC.1:2022, annex E.
_BRADFORD = np.array([[0.8951, 0.2664, -0.1614], [-0.7502, 1.7135, 0.0367], [0.0389, -0.0685, 1.0296]])
_D50 = np.array([0.9642, 1.0, 0.8249])


def coded_profile(primaries: int, transfer: int) -> bytes | None:
    """Return an ICC profile for the code points of H.273, as in PNG's cICP and HEIF's nclx; None if not supported."""
    if primaries not in _PRIMARIES or transfer not in _TRANSFERS:
        return None
    return matrix_profile(_PRIMARIES[primaries], _TRANSFERS[transfer])


def matrix_profile(chromaticities: tuple[tuple[float, float], ...], gamma: float) -> bytes | None:
    """Return an ICC profile of a display.

    chromaticities: x and y of white, red, green and blue. gamma: exponent from stored to linear values; 0 for the
    curve of sRGB. Returns None if the chromaticities are not those of three colors and a white.
    """
    try:
        white, *columns = (np.array([x / y, 1.0, (1 - x - y) / y]) for x, y in chromaticities)
        colors = np.stack(columns, axis=1)
        colors = colors * np.linalg.solve(colors, white)
        adapted = np.linalg.inv(_BRADFORD) @ np.diag((_BRADFORD @ _D50) / (_BRADFORD @ white)) @ _BRADFORD @ colors
    except (ZeroDivisionError, np.linalg.LinAlgError):
        return None
    if not np.isfinite(adapted).all() or np.abs(adapted).max() > 100:
        return None
    curve = b"para\0\0\0\0\0\0\0\0" + _fixed(np.array([gamma]))
    if gamma == 0:
        curve = b"para\0\0\0\0\0\3\0\0" + _fixed(np.array([2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045]))
    tags = [(b"wtpt", b"XYZ \0\0\0\0" + _fixed(_D50))]
    tags += [(name + b"XYZ", b"XYZ \0\0\0\0" + _fixed(adapted[:, i])) for i, name in enumerate((b"r", b"g", b"b"))]
    tags += [(name + b"TRC", curve) for name in (b"r", b"g", b"b")]
    return _icc_file(tags)


def _icc_file(tags: list[tuple[bytes, bytes]]) -> bytes:
    at = 128 + 4 + 12 * len(tags)
    table, body = struct.pack(">I", len(tags)), b""
    for name, value in tags:
        table += struct.pack(">4sII", name, at + len(body), len(value))
        body += value + bytes(-len(value) % 4)
    # Size, preferred CMM, version 4, class, color space, connection space. See ICC.1:2022, 7.2.
    header = struct.pack(">II4s4s4s4s", at + len(body), 0, b"\4\0\0\0", b"mntr", b"RGB ", b"XYZ ")
    header = (header.ljust(36, b"\0") + b"acsp").ljust(68, b"\0") + _fixed(_D50)
    return header.ljust(128, b"\0") + table + body


def _fixed(values: NDArray[np.float64]) -> bytes:
    """Encode numbers as s15Fixed16."""
    return np.rint(values * 65536).astype(">i4").tobytes()
