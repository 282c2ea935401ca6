"""PNG: only the chunks that matter for the pixels are passed to the decoder.

Guarantees: text, metadata and private chunks of any size, and broken ancillary chunks, do not refuse a picture. A
missing end is accepted if all rows are there. Transparent colors are applied in every mode, with all 16 bits.
Out of scope: frames of APNG other than the default image; embedded HDR (PQ, HLG); a gAMA chunk without cHRM, which
browsers ignore too; significant bits (sBIT) and backgrounds (bKGD): transparent pixels are blended over white.
References: PNG (third edition), chapters 5, 11 and 13.
"""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngImageFile

from model_store.decoding import color, depth
from model_store.decoding.source import Source

_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_IEND = b"\0\0\0\0IEND\xaeB`\x82"
# Ancillary chunks that are read here. tRNS is also passed to the decoder, for palettes.
_READ = (b"tRNS", b"eXIf", b"iCCP", b"sRGB", b"gAMA", b"cHRM", b"cICP")
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
# Adam7: x offset, y offset, x step, y step of each pass
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
_ORIENTATION = 0x0112


class PngSource(Source):
    """A PNG file."""

    def __init__(self, data: bytes) -> None:
        """Read the chunks. Raises what Pillow raises if the header or the palette is missing or broken."""
        kept: list[bytes | memoryview] = [_SIGNATURE]
        self._idat: list[memoryview] = []
        self._chunks: dict[bytes, bytes] = {}
        for name, body, checksum in _chunks(data):
            if name == b"IDAT":
                self._idat.append(body)
            elif name in (b"IHDR", b"PLTE"):
                kept += [struct.pack(">I", len(body)), name, body, checksum]  # Pillow verifies the checksum
            elif name in _READ and (name == b"eXIf" or not self._idat) and _is_intact(name, body, checksum):
                self._chunks.setdefault(name, bytes(body))
        if len(self._chunks.get(b"tRNS", b"")) >= {0: 2, 2: 6}.get(data[25], 1):
            kept.append(_chunk(b"tRNS", self._chunks[b"tRNS"]))
        size = sum(map(len, self._idat))
        self._file = b"".join([*kept, struct.pack(">I", size), b"IDAT", *self._idat, b"\0\0\0\0", _IEND])
        super().__init__(PngImageFile(io.BytesIO(self._file)))
        header = data[16:29]
        self._depth, self._color_type, self._interlaced = header[8], header[9], header[12] != 0
        self._transparent = self._transparent_color()
        self._low_bytes: Image.Image | None = None

    def load(self) -> None:
        """Decode the pixels. Raises OSError if some are missing."""
        super().load()
        width, height = self.image.size
        # The decoder accepts a stream that ends early, and leaves the remaining rows zero.
        last_row = self.image.crop((0, height - 1, width, height))
        if (self._interlaced or not np.asarray(last_row).any()) and not self._has_all_rows():
            raise OSError("image file is truncated")
        if self._depth == 16 and self._color_type == 2 and self._transparent:
            # Pillow has no mode for 16-bit color. Read as little endian, the same data gives the low bytes.
            low = PngImageFile(io.BytesIO(self._file))
            low.tile = [tile._replace(args="RGB;16L") for tile in low.tile]
            low.load()
            self._low_bytes = low

    def orientation(self) -> int:
        """Return the orientation in the eXIf chunk, 1 to 8."""
        exif = Image.Exif()
        try:
            exif.load(b"Exif\0\0" + self._chunks.get(b"eXIf", b""))
            value = exif.get(_ORIENTATION, 1)
        except Exception:  # broken EXIF does not make the picture unusable
            return 1
        return value if isinstance(value, int) else 1

    def profile(self) -> bytes | None:
        """Return the profile that the first of cICP, iCCP, sRGB, and gAMA with cHRM describes."""
        cicp = self._chunks.get(b"cICP", b"")
        if len(cicp) == 4 and cicp[2:] == b"\0\1":
            return color.coded_profile(cicp[0], cicp[1])
        if b"iCCP" in self._chunks:
            return _inflate_profile(self._chunks[b"iCCP"])
        gamma, chromaticities = self._chunks.get(b"gAMA", b""), self._chunks.get(b"cHRM", b"")
        if b"sRGB" in self._chunks or len(gamma) != 4 or len(chromaticities) != 32 or not any(gamma):
            return None
        numbers = [number / 100_000 for number in struct.unpack(">8I", chromaticities)]
        pairs = tuple(zip(numbers[::2], numbers[1::2], strict=True))
        return color.matrix_profile(pairs, 100_000 / struct.unpack(">I", gamma)[0])

    def is_direct(self) -> bool:
        """Return whether the decoded picture can be resampled as it is."""
        return not self._transparent and super().is_direct()

    def bands(self, first: int = 0, last: int | None = None) -> Iterator[tuple[int, Image.Image]]:
        """As `Source.bands`, with the transparent color already applied."""
        for y, band in super().bands(first, last):
            yield y, self._with_alpha(y, band, self._transparent) if self._transparent else band

    def _with_alpha(self, y: int, band: Image.Image, transparent: tuple[int, ...]) -> Image.Image:
        values = np.asarray(band.convert("L") if band.mode == "1" else band)
        if values.ndim == 2:
            alpha = np.where(values == transparent[0], 0, 255).astype(np.uint8)
            gray = depth.eight_bits(values, (0, 65535)) if values.dtype.itemsize == 2 else values
            return Image.merge("LA", (Image.fromarray(gray), Image.fromarray(alpha)))
        if self._low_bytes is None:
            matches = (values == np.array(transparent)).all(axis=2)
        else:
            low = np.asarray(self._low_bytes.crop((0, y, band.width, y + band.height)))
            key = np.array(transparent)
            matches = ((values == key >> 8) & (low == key & 255)).all(axis=2)
        rgba = band.convert("RGBA")
        rgba.putalpha(Image.fromarray(np.where(matches, 0, 255).astype(np.uint8)))
        return rgba

    def _transparent_color(self) -> tuple[int, ...] | None:
        """Return the transparent color of a gray or RGB picture, in the scale of Pillow's pixels."""
        channels = {0: 1, 2: 3}.get(self._color_type)
        body = self._chunks.get(b"tRNS", b"")
        if not channels or len(body) < 2 * channels:
            return None
        values = struct.unpack(f">{channels}H", body[: 2 * channels])
        largest = 2**self._depth - 1
        # Pillow scales 1, 2 and 4 bits to 8. The bits above the depth of the picture mean nothing.
        scale = 255 // largest if self._depth < 8 else 1
        return tuple((value & largest) * scale for value in values)

    def _has_all_rows(self) -> bool:
        """Return whether the compressed data contains every row, without keeping it."""
        width, height = self.size
        bits = self._depth * _CHANNELS.get(self._color_type, 1)
        sizes = [(width, height)]
        if self._interlaced:
            sizes = [(-((x - width) // dx), -((y - height) // dy)) for x, y, dx, dy in _ADAM7]
        expected = sum((1 + (w * bits + 7) // 8) * h for w, h in sizes if w > 0 and h > 0)
        inflate, found = zlib.decompressobj(), 0
        try:
            for body in self._idat:
                rest: bytes | memoryview = body
                while rest and found < expected:
                    found += len(inflate.decompress(rest, 1 << 16))
                    rest = inflate.unconsumed_tail
        except zlib.error:
            pass  # what was found before the error counts
        return found >= expected


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview, bytes]]:
    """Yield (name, body, checksum) of each chunk up to IEND; the last chunk may be truncated."""
    view = memoryview(data)
    at = len(_SIGNATURE)
    while at + 8 <= len(data):
        length, name = struct.unpack(">I4s", data[at : at + 8])
        if name == b"IEND" or not name.isalpha():
            return
        body = view[at + 8 : at + 8 + length]
        yield name, body, data[at + 8 + length : at + 12 + length]
        at += 12 + length


def _is_intact(name: bytes, body: memoryview, checksum: bytes) -> bool:
    return struct.pack(">I", zlib.crc32(body, zlib.crc32(name))) == checksum


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def _inflate_profile(body: bytes) -> bytes | None:
    """Return the profile of an iCCP chunk (name, NUL, method 0, compressed profile); None if it is broken."""
    name, separator, rest = body.partition(b"\0")
    if not separator or len(name) > 79 or rest[:1] != b"\0":
        return None
    inflate = zlib.decompressobj()
    try:
        profile = inflate.decompress(rest[1:], color.MAX_PROFILE_BYTES)
    except zlib.error:
        return None
    return None if inflate.unconsumed_tail else profile
