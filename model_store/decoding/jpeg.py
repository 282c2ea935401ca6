"""JPEG: scaled decoding, and telling a missing end marker from missing pixels.

Guarantees: large pictures are scaled down by the decoder, to at least twice the needed size. A picture without an end
marker is accepted if its pixels do not depend on what might follow, and refused otherwise.
Out of scope: lossless, hierarchical and 12-bit JPEG, which are named in the error.
References: ITU-T T.81, annex B (markers) and G (progressive).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import NamedTuple

from PIL import Image, ImageChops
from PIL.JpegImagePlugin import JpegImageFile

from model_store import errors
from model_store.decoding.formats import FORMATS
from model_store.decoding.source import Source

_EOI = b"\xff\xd9"
# Bits that no decoder takes for those of an empty block. No byte is 255, which would start a marker.
_NOISE = b"\x5a\x96\x3c" * 64
# The gray that libjpeg fills in for missing data
_FILL = (128, (128, 128, 128), (127, 127, 127, 127), (128, 128, 128, 127))
# The end of a picture can have a few zeros, but not this many.
_PADDING = bytes(64)
_LOSSLESS = (0xC3, 0xC7, 0xCB, 0xCF)
_HIERARCHICAL = (0xC5, 0xC6, 0xCD, 0xCE, 0xDE)
_RESTARTS = range(0xD0, 0xD8)
_NO_LENGTH = (0x01, *range(0xD0, 0xD9))


class Frame(NamedTuple):
    """What the frame header says. marker: SOF0 to SOF15, without 0xFF. components: their identifiers."""

    marker: int
    precision: int
    components: bytes


class JpegSource(Source):
    """A JPEG file. `size` is that of the file, even after `load` has scaled the picture."""

    def __init__(self, data: bytes, least: int) -> None:
        """Read the header of `data`. least: the decoder may scale the shorter side down to this many pixels.

        Raises ImageFormatError for kinds of JPEG that are not supported, and what Pillow raises for broken files.
        """
        _check_supported(frame_header(data))
        # Downloads and disks fill what is missing with zeros, which the decoder would take for data.
        self._data = data.rstrip(b"\0") if data.endswith(_PADDING) else data
        super().__init__(JpegImageFile(io.BytesIO(self._data)))
        self._least = least
        self._extent: tuple[float, float] = self.size

    def extent(self) -> tuple[float, float]:
        """Return the exact size. The last column and row may be only partly inside the picture."""
        return self._extent

    def load(self) -> None:
        """Decode the pixels. Raises OSError if some are missing."""
        try:
            self._decode(self.image)
        except OSError as missing_end:
            self.image = self._without_end(missing_end)
        else:
            # An end marker after a truncated picture: libjpeg does not report it, but fills in gray.
            width, height = self.image.size
            last = self.image.getpixel((width - 1, height - 1))
            if last in _FILL and not self._is_complete():
                raise OSError("image file is truncated")

    def _decode(self, image: Image.Image) -> None:
        scaled = image.draft("RGB", (self._least, self._least))
        image.load()
        self._extent = scaled[1][2:] if scaled else image.size

    def _without_end(self, missing_end: OSError) -> JpegImageFile:
        """Decode a picture that has no end marker. Raises `missing_end` if pixels are missing too."""
        image = self._if_determined(self._data)
        if image is None:
            raise missing_end
        return image

    def _is_complete(self) -> bool:
        return self._if_determined(self._data[: _end_of_scans(self._data)]) is not None

    def _if_determined(self, data: bytes) -> JpegImageFile | None:
        """Decode data that ends before the end marker; None if the pixels depend on how it is continued."""
        if not _has_all_scans(data):
            return None
        if data.endswith(b"\xff"):  # only half of an escaped 0xFF
            data += b"\0"
        # Where a restart interval ends, the decoder skips everything up to the next restart marker.
        last = max((data.rfind(bytes((0xFF, marker))), marker) for marker in _RESTARTS)
        following = [0xD0 + (last[1] + i) % 8 for i in range(1, 9)] if last[0] >= 0 else _RESTARTS
        noise = _NOISE + b"".join(bytes((0xFF, marker)) + _NOISE for marker in following)
        images = []
        for continuation in (b"", noise):
            image = JpegImageFile(io.BytesIO(data + continuation + _EOI))
            self._decode(image)
            images.append(image)
        return images[0] if ImageChops.difference(*images).getbbox() is None else None


def frame_header(data: bytes) -> Frame | None:
    """Return the frame header, or None if there is none before the first scan."""
    for marker, start, end in _segments(data):
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and end - start >= 6:
            return Frame(marker, data[start], data[start + 6 : end : 3][: data[start + 5]])
        if marker == 0xDE:
            return Frame(marker, 8, b"")
        if marker == 0xDA:
            break
    return None


def _check_supported(frame: Frame | None) -> None:
    if frame is None:
        return
    advice = "Convert it to a baseline or progressive JPEG with 8 bits per sample"
    if frame.marker in _LOSSLESS:
        raise errors.ImageFormatError("lossless JPEG", FORMATS, advice)
    if frame.marker in _HIERARCHICAL:
        raise errors.ImageFormatError("hierarchical JPEG", FORMATS, advice)
    if frame.precision != 8:
        raise errors.ImageFormatError(f"{frame.precision}-bit JPEG", FORMATS, advice)


def _segments(data: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield (marker, start, end) of each marker segment up to the end of the picture, without the 2 length bytes."""
    at = 2
    while (at := data.find(b"\xff", at)) >= 0 and at + 1 < len(data):
        marker = data[at + 1]
        if marker in (0x00, 0xFF) or marker in _NO_LENGTH:
            at += 1 if marker == 0xFF else 2
            continue
        if marker == 0xD9:
            yield marker, at, at
            return
        end = at + 2 + int.from_bytes(data[at + 2 : at + 4], "big")
        yield marker, at + 4, end
        at = end


def _end_of_scans(data: bytes) -> int:
    """Return the position of the end marker."""
    return next((start for marker, start, _ in _segments(data) if marker == 0xD9), len(data))


def _has_all_scans(data: bytes) -> bool:
    """Return whether the scans so far transmit every bit of every coefficient of every component."""
    frame = frame_header(data)
    if frame is None:
        return False
    missing = {component: set(range(64)) for component in frame.components}
    for marker, start, end in _segments(data):
        if marker != 0xDA or end > len(data):
            continue
        count = data[start]
        first, last, bits = data[start + 1 + 2 * count : start + 4 + 2 * count]
        if bits & 15 == 0:  # the lowest bit of these coefficients
            for component in data[start + 1 : start + 1 + 2 * count : 2]:
                missing.get(component, set()).difference_update(range(first, last + 1))
    return not any(missing.values())
