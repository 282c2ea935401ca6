"""Read the protocol buffers' wire format field by field, without a schema: what Caffe's files are written in.

Promises: nothing is read past the end of what was given; time and memory are in proportion to its length, whatever the
bytes are; runs of numbers come as one view of bytes, packed or not. What cannot be read is a `WireError`.
Does not: know messages or defaults (caffe.py does), read groups, which no file here has.
Source: the protocol buffers' documentation, "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

MAX_FIELDS: Final = 1_000_000  # of one message; a net has some hundred
_FIRST_LOOK: Final = 1024  # repeated numbers that are looked at together at first


class WireError(ValueError):
    """Bytes that are no protocol buffer. The text says what is wrong, in words for the file's owner."""


class Wire(IntEnum):
    """How a field's value is written."""

    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5


_FORMS: Final = frozenset(int(wire) for wire in Wire)


class Field(NamedTuple):
    """One field. `number` is a varint's value; `data` the bytes of any other, of a whole run of fixed numbers."""

    id: int
    wire: Wire
    number: int
    data: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of `message` in order. Raises WireError where it cannot be read any further."""
    position, count, empty = 0, 0, message[:0]
    while position < len(message):
        count += 1
        if count > MAX_FIELDS:
            raise WireError(f"a message has more than {MAX_FIELDS:,} fields")
        start = position
        tag, position = _varint(message, position)
        identity, wire = tag >> 3, tag & 7
        if identity == 0:
            raise WireError(f"there is no field 0 (byte {start:,})")
        if wire == Wire.VARINT:
            number, position = _varint(message, position)
            yield Field(identity, Wire.VARINT, number, empty)
        elif wire == Wire.LENGTH:
            size, position = _varint(message, position)
            if size > len(message) - position:
                raise WireError(
                    f"it ends {size - (len(message) - position):,} bytes early, in the middle of a field: it was cut"
                )
            yield Field(identity, Wire.LENGTH, 0, message[position : position + size])
            position += size
        elif wire in (Wire.FIXED32, Wire.FIXED64):
            data, position = _run(message, start, position, 4 if wire == Wire.FIXED32 else 8)
            yield Field(identity, Wire(wire), 0, data)
        else:
            raise WireError(f"byte {start:,} is no start of a field")


def outline(head: memoryview) -> set[tuple[int, Wire]]:
    """Return number and form of the outermost fields that begin in `head`, the first bytes of a message.

    Nothing is returned for bytes that are no protocol buffer.
    """
    found: set[tuple[int, Wire]] = set()
    position = 0
    try:
        while position < len(head):
            tag, position = _varint(head, position)
            if tag >> 3 == 0 or tag & 7 not in _FORMS:
                return set()
            wire = Wire(tag & 7)
            found.add((tag >> 3, wire))
            if wire == Wire.FIXED32:
                position += 4
            elif wire == Wire.FIXED64:
                position += 8
            else:
                number, position = _varint(head, position)
                position += number if wire == Wire.LENGTH else 0
    except WireError:  # the head ends here
        pass
    return found


def varints(packed: memoryview) -> list[int]:
    """Return the numbers of a packed field. Raises WireError."""
    numbers, position = [], 0
    while position < len(packed):
        number, position = _varint(packed, position)
        numbers.append(number)
        if len(numbers) > MAX_FIELDS:
            raise WireError(f"a list has more than {MAX_FIELDS:,} numbers")
    return numbers


def float32(data: memoryview) -> float:
    """Return the last float of a field of fixed 32-bit values: of a field that is not repeated, the one that counts."""
    return float(struct.unpack("<f", data[-4:])[0])


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return (number, position behind it)."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise WireError("it ends in the middle of a number: it was cut")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise WireError(f"byte {position - 1:,} is no end of a number")


def _run(message: memoryview, start: int, position: int, width: int) -> tuple[memoryview, int]:
    """Return the values of the fixed number whose tag is at `start`, and of all that follow it with the same tag.

    A net's weights may be written so, a tag before each: 61 million steps of the loop above would take a minute.
    """
    if len(message) - position < width:
        raise WireError("it ends in the middle of a number: it was cut")
    if position - start != 1:
        return message[position : position + width], position + width
    stride, tag = width + 1, message[start]
    most, found, look = (len(message) - start) // stride, 1, _FIRST_LOOK
    while found < most:
        # Look at twice as many each time, so that many short runs cost no more than one long one.
        more = min(look, most - found)
        begin = start + found * stride
        tags = np.frombuffer(message, np.uint8, more * stride, begin)[::stride]
        same = int(np.argmin(tags == tag)) if not bool((tags == tag).all()) else more
        found += same
        if same < more:
            break
        look *= 2
    rows = np.frombuffer(message, np.uint8, found * stride, start).reshape(found, stride)
    return memoryview(rows[:, 1:].tobytes()), start + found * stride
