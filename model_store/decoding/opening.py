"""Open an image file of any supported format. GIF and BMP need little code and are handled here.

Out of scope: limits, which the caller checks before it decodes the pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile

from model_store.decoding.heif import HeifSource
from model_store.decoding.jpeg import JpegSource
from model_store.decoding.png import PngSource
from model_store.decoding.source import Source
from model_store.decoding.tiff import TiffSource
from model_store.decoding.webp import WebPFile, repaired


class GifSource(Source):
    """The first frame of a GIF. What it does not cover is transparent, as in browsers; Pillow fills in a color."""

    def __init__(self, data: bytes) -> None:
        """Read the header. Raises what Pillow raises for broken files."""
        super().__init__(GifImageFile(io.BytesIO(data)))
        extent = self.image.tile[0].extents if self.image.tile else None
        self._frame = None if extent == (0, 0, *self.size) else extent

    def is_direct(self) -> bool:
        """Return whether the decoded picture can be resampled as it is."""
        return self._frame is None and super().is_direct()

    def bands(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, Image.Image]]:
        """As `Source.bands`, with the pixels outside the frame already transparent."""
        for y, band in super().bands(first, last):
            if self._frame is None:
                yield y, band
                continue
            left, top, right, bottom = self._frame
            whole = Image.new("RGBA", band.size)
            box = (left, max(top - y, 0), right, min(bottom - y, band.height))
            if box[1] < box[3]:
                whole.paste(band.convert("RGBA").crop(box), box[:2])
            yield y, whole


class BmpSource(Source):
    """A BMP. Many programs write an alpha channel that is zero everywhere and means nothing; browsers ignore it."""

    def __init__(self, data: bytes) -> None:
        """Read the header. Raises what Pillow raises for broken files."""
        super().__init__(BmpImageFile(io.BytesIO(data)))
        self._opaque = False

    def load(self) -> None:
        """Decode the pixels. Raises OSError if some are missing."""
        super().load()
        extrema: Any = self.image.getextrema()  # of each band; Pillow's types know only those of one
        self._opaque = self.image.mode == "RGBA" and extrema[3] == (0, 0)

    def resamplable(self, band: Image.Image) -> Image.Image:
        """Convert a band to 8-bit gray or color, with or without alpha."""
        return band.convert("RGB") if self._opaque else super().resamplable(band)


_READERS: dict[str, Callable[[bytes], Source]] = {
    "PNG": PngSource,
    "TIFF": TiffSource,
    "WEBP": lambda data: Source(WebPFile(io.BytesIO(repaired(data)))),
    "GIF": GifSource,
    "BMP": BmpSource,
}


def open_source(data: bytes, form: str, least: int) -> Source:
    """Read the header of the image file `data`, which has the format `form` (see `formats.format_of`).

    least: a decoder may scale the picture down to this many pixels on the shorter side. Raises ImageFormatError, and
    for broken files what Pillow raises: OSError, SyntaxError, ValueError, struct.error and others.
    """
    if form == "JPEG":
        return JpegSource(data, least)
    if form in ("AVIF", "HEIC"):
        return HeifSource(data, form)
    return _READERS[form](data)
