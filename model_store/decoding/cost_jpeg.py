"""Estimate what decoding a JPEG takes, from its frame header and the number and kind of its scans.

Guarantees: the whole file is scanned for scan headers, so that scans after hidden end markers in comments are counted.
Out of scope: hierarchical JPEGs and other processes that libjpeg rejects immediately.
References: ITU-T T.81, annex B (markers); libjpeg-turbo (`jdcoefct.c`, `jmemmgr.c`) for the memory of coefficients.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from model_store.decoding.decode_cost import MAX_STEPS, NS, DecodeCost

DRAFT_SIZE: Final = 512
"""The decoder may scale down by 2, 4 or 8, but leaves at least this size on the shorter side."""

# The next marker. In entropy-coded data, FF00 is an escaped byte and FFD0 to FFD7 are restart markers.
_IN_HEADER: Final = re.compile(rb"\xff[^\x00\xff]")
_IN_SCAN: Final = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
_STANDALONE: Final = frozenset((0x01, *range(0xD0, 0xD9)))
_SOS, _EOI = 0xDA, 0xD9
_SOF: Final = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_ARITHMETIC: Final = frozenset((0xC9, 0xCA, 0xCB))
_PROGRESSIVE: Final = frozenset((0xC2, 0xCA))
_LOSSLESS: Final = frozenset((0xC3, 0xCB))
_SEGMENT = 4_000 * NS  # Pillow handles the segments before the first scan in Python
_JUNK = 300 * NS  # and skips other bytes there one by one
_BLOCK = 45 * NS  # a block of 8x8 samples in one scan of several


@dataclass(slots=True)
class _Frame:
    """A frame header. blocks: of each component, by its identifier."""

    process: int
    width: int
    height: int
    precision: int
    blocks: dict[int, int] = field(default_factory=dict)

    @classmethod
    def parse(cls, process: int, body: bytes) -> _Frame:
        precision, height, width, count = struct.unpack_from(">BHHB", body)
        components = [struct.unpack_from("BB", body, 6 + 3 * number) for number in range(count)]
        tallest = max((sampling & 15 for _, sampling in components), default=1) or 1
        widest = max((sampling >> 4 for _, sampling in components), default=1) or 1
        frame = cls(process, width, height, precision)
        for identifier, sampling in components:
            across = -(-width * (sampling >> 4) // (8 * widest))
            frame.blocks[identifier] = across * -(-height * (sampling & 15) // (8 * tallest))
        return frame


def jpeg_cost(data: bytes) -> DecodeCost:
    """Estimate what decoding the JPEG `data` takes. Raises struct.error if it is broken."""
    frame, seconds, at, complete = _read_headers(data)
    if frame is None:
        return DecodeCost(0, seconds, len(data), predictable=False)
    blocks = first_scan = 0
    end = at
    for position in _scans(data, at) if complete else ():
        end = abs(position)
        if position < 0:
            complete = False
            break
        components = data[end + 2]
        blocks += sum(frame.blocks.get(each, 0) for each in data[end + 3 : end + 3 + 2 * components : 2])
        first_scan = first_scan or components
    pixels = frame.width * frame.height
    buffered = frame.process in _PROGRESSIVE or first_scan < len(frame.blocks)
    entropy = 100 if frame.process in _ARITHMETIC else 40 if buffered else 15  # ns for a byte
    repeats = 1
    if data[-2:] != b"\xff\xd9":
        repeats = 3  # without the end marker, it is decoded up to three times
    scale = 1
    if frame.process not in _LOSSLESS:
        ratio = min(frame.width, frame.height) // DRAFT_SIZE
        scale = next((each for each in (8, 4, 2) if ratio >= each), 1)
    output = -(-frame.width // scale) * -(-frame.height // scale)
    seconds += (len(data) * entropy + pixels * 2.5 + output * 8) * NS
    memory = repeats * output * 4 + frame.width * 64 + len(data)  # a copy without metadata
    if buffered:
        every = sum(frame.blocks.values())
        seconds += (blocks + every) * _BLOCK
        memory += every * 128
    seconds *= repeats
    if not complete:
        seconds *= max(1.0, len(data) / end)
    plain = frame.process in (0xC0, 0xC1, 0xC2) and frame.precision == 8
    return DecodeCost(pixels, seconds, memory, predictable=complete and plain)


def _read_headers(data: bytes) -> tuple[_Frame | None, float, int, bool]:
    """Return the largest frame, the time that Pillow needs up to the first scan, its position, and if it was found."""
    frame: _Frame | None = None
    seconds, at = 0.0, 2
    for _ in range(MAX_STEPS):
        found = _IN_HEADER.search(data, at)
        if found is None:
            return frame, seconds + (len(data) - at) * _JUNK, len(data), False
        seconds += _SEGMENT + (found.start() - at) * _JUNK
        at = found.end()
        marker = data[at - 1]
        if marker == _SOS:
            return frame, seconds, at, True
        if marker in _STANDALONE or marker == _EOI:
            continue
        size = int.from_bytes(data[at : at + 2], "big")
        if marker in _SOF:
            other = _Frame.parse(marker, data[at + 2 : at + size])
            if frame is None or other.width * other.height >= frame.width * frame.height:
                frame = other
        at += max(size, 2)
    return frame, seconds * len(data) / at, at, False


def _scans(data: bytes, at: int) -> Iterator[int]:
    """Yield the position after the marker of each scan that the decoder reaches, starting with the one at `at`.

    After `MAX_STEPS` markers, the last value is the negative position of the rest of the file.
    """
    yield at
    if not _may_contain_scan(data, at):
        return  # the search for markers below would be slower
    for _ in range(MAX_STEPS):
        at += max(int.from_bytes(data[at : at + 2], "big"), 2)
        found = _IN_SCAN.search(data, at)
        if found is None:
            return
        at = found.end()
        marker = data[at - 1]
        if marker == _SOS:
            yield at
        elif marker == _EOI or marker in _STANDALONE or marker in _SOF:
            return
    yield -at


def _may_contain_scan(data: bytes, at: int) -> bool:
    """Return whether the marker of a scan may follow.

    NumPy is three times as fast as `bytes.find`, which also keeps the GIL.
    """
    values = np.frombuffer(data, np.uint8, offset=at)
    return bool(((values[:-1] == 0xFF) & (values[1:] == _SOS)).any())
