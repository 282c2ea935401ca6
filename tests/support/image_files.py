"""Write image files that Pillow cannot write: PNG and TIFF of any depth, and changed JPEG and HEIF files."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
REVERSED = bytes(int(f"{value:08b}"[::-1], 2) for value in range(256))


def colors(width: int = 300, height: int = 260) -> NDArray[np.float64]:
    """Return smooth colors from 0 to 1, [height,width,3]; every channel reaches both ends."""
    y, x = np.mgrid[0 : 1 : height * 1j, 0 : 1 : width * 1j]
    return np.stack([0.7 * x + 0.3 * y, 1 - x, y], axis=-1)


def scaled(values: NDArray[np.float64], bits: int) -> NDArray[np.uint16]:
    """Return values from 0 to 1 as whole numbers of `bits` bits, 16 at most."""
    return np.asarray(np.rint(values * (2**bits - 1)), np.uint16)


def square(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Return the central square of gray or RGB pixels (0-255) as `prepare` should, uint8 [256,256,3]."""
    picture = Image.fromarray(np.rint(pixels).astype(np.uint8))
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)
    return np.asarray(picture.resize((256, 256), Image.Resampling.BILINEAR, box=box).convert("RGB"))


def encoded(picture: Image.Image, form: str, **options: Any) -> bytes:
    """Return the picture as a file that Pillow writes."""
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def packed(row: NDArray[np.uint16], bits: int) -> bytes:
    """Return samples as consecutive big-endian numbers of `bits` bits, padded to a whole byte."""
    planes = np.unpackbits(row.astype(">u2").view(np.uint8).reshape(-1, 2), axis=1)[:, 16 - bits :]
    return np.packbits(planes.reshape(-1)).tobytes()


def chunk(name: bytes, body: bytes, checksum: int | None = None) -> bytes:
    """Return a PNG chunk; with a wrong checksum, if one is given."""
    crc = zlib.crc32(name + body) if checksum is None else checksum
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", crc)


def png(
    samples: NDArray[np.uint16],
    bits: int,
    color_type: int,
    *,
    before: bytes = b"",
    after: bytes = b"",
    end: bytes | None = None,
    interlaced: bool = False,
) -> bytes:
    """Return a PNG. samples: [height,width] or [height,width,channels]. before, after: chunks around the pixels."""
    height, width = samples.shape[:2]
    passes = [samples[y::dy, x::dx] for x, y, dx, dy in _ADAM7] if interlaced else [samples]
    rows = b"".join(b"\0" + packed(row.reshape(-1), bits) for part in passes if part.size for row in part)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, interlaced))
    end = chunk(b"IEND", b"") if end is None else end
    return b"\x89PNG\r\n\x1a\n" + header + before + chunk(b"IDAT", zlib.compress(rows)) + after + end


def tiff(tags: Mapping[int, int | Sequence[int]], strips: Sequence[bytes], order: str = "<") -> bytes:
    """Return a TIFF with these tags, all of type LONG or SHORT. order: "<" or ">"."""
    head = b"II*\0" if order == "<" else b"MM\0*"
    entries: dict[int, tuple[str, Sequence[int]]] = {
        tag: ("H", [value] if isinstance(value, int) else value) for tag, value in tags.items()
    }
    start = 8 + 2 + 12 * (len(entries) + 2) + 4
    offsets = [start + sum(map(len, strips[:number])) for number in range(len(strips))]
    entries |= {273: ("I", offsets), 279: ("I", [len(strip) for strip in strips])}
    table, extra = struct.pack(order + "H", len(entries)), b""
    for tag, (kind, values) in sorted(entries.items()):
        data = struct.pack(f"{order}{len(values)}{kind}", *values)
        if len(data) > 4:
            position = start + sum(map(len, strips)) + len(extra)
            extra, data = extra + data, struct.pack(order + "I", position)
        table += struct.pack(order + "HHI", tag, {"H": 3, "I": 4}[kind], len(values)) + data.ljust(4, b"\0")
    return head + struct.pack(order + "I", 8) + table + bytes(4) + b"".join(strips) + extra
