"""Estimate what decoding the first image of a TIFF takes, from its directory of tags.

Guarantees: a tile or strip that is larger than the picture counts in full, because it is decoded in full; the arrays of
offsets count too. BigTIFF is understood.
Out of scope: images inside the strips (JPEG, WebP): their own headers may differ, so these files are unpredictable.
References: TIFF 6.0, sections 2, 8 and 15; the BigTIFF design; Pillow's TiffImagePlugin (modes).
"""

from __future__ import annotations

import struct
from typing import Final

from model_store.decoding.decode_cost import BAND_BYTES, MAX_STEPS, NS, DecodeCost

_WIDTH, _HEIGHT, _BITS, _COMPRESSION, _SAMPLES, _ROWS, _STRIP_OFFSETS = 256, 257, 258, 259, 277, 278, 273
_TILE_WIDTH, _TILE_HEIGHT, _TILE_OFFSETS, _PLANAR = 322, 323, 324, 284
_SIZES: Final = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_NUMBERS: Final = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q"}
_BYTES: Final = (1, 2, 6, 7)  # types that Pillow keeps as bytes; the values of others become Python objects
# Compression -> ns for a byte of pixels
_RATES: Final = {
    1: 2,
    5: 8,
    8: 9,
    32946: 9,
    32773: 3,
    2: 20,
    3: 20,
    4: 20,
    6: 20,
    7: 20,
    50000: 5,
    50001: 60,
    34925: 50,
}
_STRIP = 25_000 * NS  # Pillow decodes uncompressed strips and tiles one by one, in Python
_STRIP_BYTES = 600
_VALUE = 100 * NS
_VALUE_BYTES = 48


def tiff_cost(data: bytes) -> DecodeCost:
    """Estimate what decoding the TIFF `data` takes. Raises struct.error if it is broken."""
    order = "<" if data[:2] == b"II" else ">"
    numbers, counts, values = _read_directory(data, order)
    width, height = numbers.get(_WIDTH, 0), numbers.get(_HEIGHT, 0)
    samples, bits = max(numbers.get(_SAMPLES, 1), counts.get(_BITS, 1)), numbers.get(_BITS, 1)
    compression, planar = numbers.get(_COMPRESSION, 1), numbers.get(_PLANAR, 1) == 2
    tile_width, tile_height = numbers.get(_TILE_WIDTH, 0), numbers.get(_TILE_HEIGHT, 0)
    if tile_width and tile_height:
        part = tile_width * tile_height
        decoded = -(-width // tile_width) * -(-height // tile_height) * part
    else:
        part = width * min(numbers.get(_ROWS, height) or height, height)
        decoded = width * height
    pixels = max(decoded, width * height, part)
    stored = 4 if samples > 1 or bits > 16 else 2 if bits > 8 else 1
    if compression in (6, 7):
        stored = 4
    pixel_bytes = -(-samples * bits // 8)
    wide = samples == 1 and bits > 8  # converted in bands
    seconds = (pixels * (8 + 50 * wide + pixel_bytes * _RATES.get(compression, 40)) + len(data)) * NS + values * _VALUE
    memory = width * height * stored + values * _VALUE_BYTES
    memory += min(pixels * 24, BAND_BYTES)
    if compression == 1 and not planar:
        parts = max(counts.get(_STRIP_OFFSETS, 0), counts.get(_TILE_OFFSETS, 0))
        seconds += parts * _STRIP
        memory += parts * _STRIP_BYTES
    else:
        memory += part * max(pixel_bytes, stored)  # libtiff decodes a whole strip or tile
    return DecodeCost(pixels, seconds, memory, predictable=compression == 1 and not planar)


def _read_directory(data: bytes, order: str) -> tuple[dict[int, int], dict[int, int], int]:
    """Return the first number and the count of each tag of the first directory, and how many values all tags have."""
    big = data[2:4] in (b"\x2b\0", b"\0\x2b")
    entry_size, inline, field = (20, 8, "Q") if big else (12, 4, "I")
    [first] = struct.unpack_from(order + field, data, 8 if big else 4)
    [entries] = struct.unpack_from(order + ("Q" if big else "H"), data, first)
    at = first + (8 if big else 2)
    numbers: dict[int, int] = {}
    counts: dict[int, int] = {}
    values = 0
    for _ in range(min(entries, MAX_STEPS)):
        if at + entry_size > len(data):
            break
        tag, kind, count = struct.unpack_from(f"{order}HH{field}", data, at)
        where = at + 4 + struct.calcsize(order + field)
        size = _SIZES.get(kind, 1) * count
        if size > inline:
            [where] = struct.unpack_from(order + field, data, where)
        if kind in _NUMBERS and count and where + 8 <= len(data) + 8:
            [numbers[tag]] = struct.unpack_from(order + _NUMBERS[kind], data, where)
        counts[tag] = count
        values += 0 if kind in _BYTES else min(count, len(data))
        at += entry_size
    # Pillow reads at most as many bytes of tags as the file has.
    return numbers, counts, min(values, len(data) // 2) + min(entries, MAX_STEPS)
