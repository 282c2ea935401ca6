"""An opened image file, and its central square.

Guarantees: no copy of the whole picture in another mode or type is ever made: pictures that must be converted before
they can be resampled are converted in bands of rows. The result is the same as that of converting the whole picture.
Out of scope: colors (see color.py) and orientation, which are applied to the small square.
References: Pillow's `ImagingResample`, which resamples each row first and the columns second, rounding in between.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.ImageFile import ImageFile

from model_store.decoding import depth

_ORIENTATION = 0x0112
# Modes that Pillow resamples as they are. Alpha must be premultiplied first, which makes a copy.
_DIRECT = ("RGB", "L", "CMYK", "YCbCr", "RGBX", "LAB")
_PREMULTIPLIED = {"RGBA": "RGBa", "LA": "La"}
_WITH_ALPHA = {"RGBa": "RGBA", "La": "LA"}
# Large enough that the overhead of a band is small, small enough that its copies are.
_BAND_PIXELS = 500_000


class Source:
    """An image file whose header was read; `load` decodes the pixels. Subclasses handle what is special in a format.

    image: Pillow's image. size: width and height before orientation, in pixels.
    """

    def __init__(self, image: ImageFile) -> None:
        self.image = image
        self.size: tuple[int, int] = image.size

    def load(self) -> None:
        """Decode the pixels. Raises what Pillow's decoders raise if some of the pixels are missing or broken."""
        self.image.load()

    def extent(self) -> tuple[float, float]:
        """Return the width and height of the decoded picture; a fraction if a decoder scaled it and rounded up."""
        return self.image.size

    def orientation(self) -> int:
        """Return the EXIF orientation, 1 to 8; 1 if there is none."""
        try:
            value = self.image.getexif().get(_ORIENTATION, 1)
        except Exception:  # broken EXIF does not make the picture unusable
            return 1
        return value if isinstance(value, int) else 1

    def profile(self) -> bytes | None:
        """Return the ICC profile of the picture, if any. It may be broken."""
        profile = self.image.info.get("icc_profile")
        return profile if isinstance(profile, bytes) else None

    def is_direct(self) -> bool:
        """Return whether the decoded picture can be resampled as it is."""
        return self.image.mode in _DIRECT and not self.image.has_transparency_data

    def resamplable(self, band: Image.Image) -> Image.Image:
        """Convert a band of the decoded picture to 8-bit gray or color, with or without alpha."""
        if band.mode.startswith("I;16"):
            return Image.fromarray(depth.eight_bits(np.asarray(band), (0, 65535)))
        if band.mode in _DIRECT or band.mode in _PREMULTIPLIED or band.mode in _WITH_ALPHA:
            return band
        if band.has_transparency_data:
            return band.convert("RGBA")
        return band.convert("L" if band.mode == "1" else "RGB")

    def bands(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, Image.Image]]:
        """Yield (y, band) for the rows from `first` to before `last`, in pieces of limited size and full width."""
        width, height = self.image.size
        last = height if last is None else last
        rows = max(1, _BAND_PIXELS // width)
        for y in range(first, last, rows):
            yield y, self.image.crop((0, y, width, min(y + rows, last)))


def central_square(source: Source, size: int) -> Image.Image:
    """Resample the central square of the loaded picture to size x size, antialiased and bilinear.

    The result has the mode of the picture, or the mode that `Source.resamplable` gives.
    """
    width, height = source.extent()
    side = min(width, height)
    left, top = (width - side) / 2, (height - side) / 2
    if source.is_direct():
        return source.image.resize((size, size), Image.Resampling.BILINEAR, box=(left, top, left + side, top + side))
    # The filter reads this many pixels around the box. Without them, the first and last rows would differ.
    support = math.ceil(max(1.0, side / size)) + 1
    first = max(0, math.floor(top) - support)
    last = min(source.image.height, math.ceil(top + side) + support)
    narrow: Image.Image | None = None
    for y, band in source.bands(first, last):
        ready = source.resamplable(band)
        if ready.mode in _PREMULTIPLIED:
            ready = ready.convert(_PREMULTIPLIED[ready.mode])
        box = (left, 0, left + side, ready.height)
        part = ready.resize((size, ready.height), Image.Resampling.BILINEAR, box=box)
        if narrow is None:
            narrow = Image.new(part.mode, (size, last - first))
        narrow.paste(part, (0, y - first))
    if narrow is None:
        raise ValueError("the picture has no rows")
    square = narrow.resize((size, size), Image.Resampling.BILINEAR, box=(0, top - first, size, top - first + side))
    return square.convert(_WITH_ALPHA.get(square.mode, square.mode))
