"""AVIF and HEIC: decoded by Pillow, and by pillow-heif if the extra `heic` is installed.

Guarantees: rotation and mirroring of the container are applied once; the orientation in EXIF, which the standard
declares to be a comment, is not.
Out of scope: frames after the first (AVIF) or other than the primary image (HEIC); gain maps; HDR (PQ and HLG).
References: ISO/IEC 23008-12; AVIF 1.1; ISO/IEC 14496-12, 12.1.5 (`colr`).
"""

from __future__ import annotations

import io
import struct
from collections.abc import Callable

from PIL.AvifImagePlugin import AvifImageFile
from PIL.ImageFile import ImageFile

from model_store import errors
from model_store.decoding import color
from model_store.decoding.formats import FORMATS
from model_store.decoding.source import Source

# The properties of all images precede the pixels, except in files written for streaming.
_PROPERTIES = 65536


class _AvifFile(AvifImageFile):
    def load_prepare(self) -> None:
        self._decoder = None  # release its picture before the pixels are copied
        super().load_prepare()


class HeifSource(Source):
    """An AVIF or HEIC file."""

    def __init__(self, data: bytes, form: str) -> None:
        """Read the header. Raises ImageFormatError for HEIC if the extra is not installed."""
        super().__init__(_AvifFile(io.BytesIO(data)) if form == "AVIF" else _open_heic(data))
        self._head = data[:_PROPERTIES]

    def profile(self) -> bytes | None:
        """Return the ICC profile, or one for the color properties (nclx) of the file."""
        profile = super().profile()
        at = self._head.find(b"colrnclx")
        if profile or at < 0 or len(self._head) < at + 14:
            return profile
        primaries, transfer = struct.unpack(">HH", self._head[at + 8 : at + 12])
        return color.coded_profile(primaries, transfer)


def _open_heic(data: bytes) -> ImageFile:
    try:
        import pillow_heif  # noqa: PLC0415 - an extra, needed only for HEIC
    except ImportError as exc:
        advice = 'Install the extra "heic" on the server (pip install "fc7[heic]"), or convert the image to JPEG'
        raise errors.ImageFormatError("HEIC", [form for form in FORMATS if form != "HEIC"], advice) from exc
    opened: Callable[[io.BytesIO], ImageFile] = pillow_heif.HeifImageFile
    return opened(io.BytesIO(data))
