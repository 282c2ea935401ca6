"""Generators of image files that are small and expensive to decode, for tests and `benchmarks.hostile`.

Each function returns a complete file. Sizes are parameters, so that tests can stay small.
"""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from PIL import Image

from tests.support.pictures import encoded


def jpeg_with_scans(width: int, height: int, scans: int) -> bytes:
    """Return a gray progressive JPEG with many almost empty scans, each of which is decoded over all blocks."""
    plain = encoded(Image.new("L", (width, height), 40), "JPEG", progressive=True, quality=50)
    first_scan = plain.index(b"\xff\xda")
    dc_only = plain[: plain.index(b"\xff\xc4", first_scan)]
    # A Huffman table with one symbol of one bit: a run of up to 32,767 blocks without coefficients.
    table = b"\xff\xc4\x00\x14\x10\x01" + bytes(15) + b"\xe0"
    runs = -(-(-(-width // 8) * -(-height // 8)) // 0x7FFF)
    bits = ("0" + "1" * 14) * runs
    bits += "1" * (-len(bits) % 8)
    entropy = bytes(int(bits[at : at + 8], 2) for at in range(0, len(bits), 8)).replace(b"\xff", b"\xff\x00")
    scan = b"\xff\xda\x00\x08\x01\x01\x00\x01\x3f\x01" + entropy  # coefficients 1 to 63
    return dc_only + table + scan * scans + b"\xff\xd9"


def jpeg_with_segments(count: int) -> bytes:
    """Return a JPEG with `count` empty comments before its picture."""
    plain = encoded(Image.new("RGB", (32, 32)), "JPEG")
    return plain[:2] + b"\xff\xfe\x00\x02" * count + plain[2:]


def jpeg_with_junk(size: int) -> bytes:
    """Return a JPEG with `size` bytes between two segments."""
    plain = encoded(Image.new("RGB", (32, 32)), "JPEG")
    return plain[:20] + bytes(size) + plain[20:]


def rle_bmp(width: int, height: int) -> bytes:
    """Return a BMP whose single run is followed by an end of line that pads the rest of the row."""
    body = b"\x01\x05\x00\x00" * height + b"\x00\x01"
    palette = bytes(1024)
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 8, 1, len(body), 0, 0, 256, 0)
    offset = 14 + len(header) + len(palette)
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + palette + body


def rle_bmp_of_steps(size: int) -> bytes:
    """Return a BMP with `size` bytes of runs beyond the end of a row, which add no pixel."""
    body = b"\x0a\x05" * (size // 2)
    header = struct.pack("<IiiHHIIiiII", 40, 8, 8, 1, 8, 1, len(body), 0, 0, 256, 0)
    offset = 14 + len(header) + 1024
    return b"BM" + struct.pack("<IHHI", offset + len(body), 0, 0, offset) + header + bytes(1024) + body


def tiff(
    width: int,
    height: int,
    *,
    tile: tuple[int, int] | None = None,
    samples: int = 3,
    bits: int = 8,
    floats: bool = False,
    strips: int = 1,
    big: bool = False,
) -> bytes:
    """Return a TIFF of zeros, compressed with Deflate; with more than one strip, uncompressed and overlapping."""
    if tile is not None:
        parts = -(-width // tile[0]) * -(-height // tile[1])
        part = tile[0] * tile[1] * samples * bits // 8
    else:
        parts, part = strips, width * samples * bits // 8 * -(-height // strips)
    pixels = _zeros(part) if strips == 1 else bytes(part)
    kind, size = (16, 8) if big else (4, 4)
    tags = [(256, 4, [width]), (257, 4, [height]), (258, 3, [bits] * samples), (259, 3, [8 if strips == 1 else 1])]
    tags += [(262, 3, [2 if samples == 3 else 1]), (277, 3, [samples])]
    if tile is None:
        tags += [(273, kind, [0] * parts), (278, 4, [-(-height // strips)]), (279, kind, [len(pixels)] * parts)]
    else:
        tags += [(322, 4, [tile[0]]), (323, 4, [tile[1]]), (324, kind, [0] * parts), (325, kind, [len(pixels)] * parts)]
    if floats:
        tags.append((339, 3, [3] * samples))
    first = 16 if big else 8
    data = first + len(pixels)
    entry, inline, head = ("<HHQ", 8, "<Q") if big else ("<HHI", 4, "<H")
    tail = data + struct.calcsize(head) + len(tags) * (struct.calcsize(entry) + inline) + size
    directory, arrays = struct.pack(head, len(tags)), b""
    for tag, code, values in tags:
        numbers = [first] * len(values) if tag in (273, 324) else values
        value = struct.pack(f"<{len(numbers)}{ {3: 'H', 4: 'I', 16: 'Q'}[code] }", *numbers)
        directory += struct.pack(entry, tag, code, len(values))
        if len(value) > inline:
            directory += (tail + len(arrays)).to_bytes(inline, "little")
            arrays += value
        else:
            directory += value.ljust(inline, b"\0")
    directory += bytes(size)
    start = b"II\x2b\0\x08\0\0\0" + struct.pack("<Q", data) if big else b"II\x2a\0" + struct.pack("<I", data)
    return start + pixels + directory + arrays


def png(width: int, height: int, *, depth: int = 8, color: int = 2, interlaced: bool = False, chunks: int = 0) -> bytes:
    """Return a PNG of zeros, with `chunks` empty text chunks before its pixels."""
    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[color]
    size = height * (1 + -(-width * channels * depth // 8))
    data = _zeros(size * 2 if interlaced else size)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    palette = _chunk(b"PLTE", bytes(768)) if color == 3 else b""
    text = _chunk(b"tEXt", b"a\0b") * chunks
    parts = _chunk(b"IHDR", header) + palette + text + _chunk(b"IDAT", data) + _chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def gif_with_extensions(count: int) -> bytes:
    """Return a GIF with `count` comments before its picture."""
    plain = encoded(Image.new("P", (16, 16)), "GIF")
    at = 13 + (3 << (plain[10] & 7) + 1)
    return plain[:at] + b"!\xfe\x01a\x00" * count + plain[at:]


def flat(form: str, width: int, height: int) -> bytes:
    """Return a picture of one color, which compresses to almost nothing."""
    options = {"AVIF": {"speed": 10}, "WEBP": {"method": 0, "quality": 10}}.get(form, {})
    return encoded(Image.new("RGB", (width, height), (200, 30, 60)), form, **options)


def noisy(form: str, width: int, height: int, **options: object) -> bytes:
    """Return a picture of noise, which takes the most time for each pixel."""
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return encoded(Image.fromarray(pixels), form, **options)


def _zeros(size: int) -> bytes:
    """Return `size` zero bytes, compressed."""
    deflate = zlib.compressobj(1)
    file = io.BytesIO()
    block = bytes(1 << 20)
    for start in range(0, size, len(block)):
        file.write(deflate.compress(block[: size - start]))
    file.write(deflate.flush())
    return file.getvalue()


def _chunk(name: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
