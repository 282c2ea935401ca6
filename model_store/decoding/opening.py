"""Open an image file of any supported format.

Out of scope: limits, which the caller checks before it decodes the pixels.
"""

from __future__ import annotations

import io
from collections.abc import Callable

from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile

from model_store.decoding.heif import HeifSource
from model_store.decoding.jpeg import JpegSource
from model_store.decoding.png import PngSource
from model_store.decoding.source import Source
from model_store.decoding.tiff import TiffSource
from model_store.decoding.webp import WebPFile, repaired

_READERS: dict[str, Callable[[bytes], Source]] = {
    "PNG": PngSource,
    "TIFF": TiffSource,
    "WEBP": lambda data: Source(WebPFile(io.BytesIO(repaired(data)))),
    "GIF": lambda data: Source(GifImageFile(io.BytesIO(data))),
    "BMP": lambda data: Source(BmpImageFile(io.BytesIO(data))),
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
