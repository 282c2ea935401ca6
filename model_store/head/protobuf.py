"""Read and write the wire format of protocol buffers field by field, without a schema, as Caffe and ONNX use it.

The protobuf package is not used, because it creates one Python object for each number of an unpacked array, and a net
has 61 million. Here an array becomes one view of bytes, packed or not.

Guarantees: no byte outside the given message is read. Time and memory are proportional to its length, whatever the
bytes are. Bytes that cannot be parsed raise `WireError`.
Out of scope: messages and default values (their readers know them); groups, which neither Caffe nor ONNX uses.
References: the protocol buffers documentation, "Encoding".
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from enum import IntEnum
from typing import Final, NamedTuple

import numpy as np

MAX_FIELDS: Final = 1_000_000  # in one message; a net has a few hundred
_FIRST_BLOCK: Final = 1024  # number of repeated values that are scanned first


class WireError(ValueError):
    """The bytes are not a valid protocol buffer. The message is a reason for an ImportFormatError."""


class Wire(IntEnum):
    """The wire type of a field."""

    VARINT = 0
    FIXED64 = 1
    LENGTH = 2
    FIXED32 = 5


_WIRE_TYPES: Final = frozenset(int(wire) for wire in Wire)


class Field(NamedTuple):
    """One field. `number` is the value of a varint. `data` holds other values; fixed-size ones may be a whole run."""

    id: int
    wire: Wire
    number: int
    data: memoryview


def fields(message: memoryview) -> Iterator[Field]:
    """Yield the fields of `message` in order. Raises WireError at the first byte that cannot be parsed."""
    position, count, empty = 0, 0, message[:0]
    while position < len(message):
        count += 1
        if count > MAX_FIELDS:
            raise WireError(f"a message has more than {MAX_FIELDS:,} fields")
        start = position
        tag, position = _varint(message, position)
        identity, wire = tag >> 3, tag & 7
        if identity == 0:
            raise WireError(f"byte {start:,} starts a field with the number 0, which is not valid")
        if wire == Wire.VARINT:
            number, position = _varint(message, position)
            yield Field(identity, Wire.VARINT, number, empty)
        elif wire == Wire.LENGTH:
            size, position = _varint(message, position)
            missing = size - (len(message) - position)
            if missing > 0:
                raise WireError(f"the file is truncated: {missing:,} bytes of a field are missing at its end")
            yield Field(identity, Wire.LENGTH, 0, message[position : position + size])
            position += size
        elif wire in (Wire.FIXED32, Wire.FIXED64):
            data, position = _run(message, start, position, 4 if wire == Wire.FIXED32 else 8)
            yield Field(identity, Wire(wire), 0, data)
        else:
            raise WireError(f"byte {start:,} does not start a valid field")


def outline(head: memoryview) -> set[tuple[int, Wire]]:
    """Return the number and wire type of the outermost fields that start in `head`, the first bytes of a message.

    Returns an empty set if the bytes are not a protocol buffer.
    """
    found: set[tuple[int, Wire]] = set()
    position = 0
    try:
        while position < len(head):
            tag, position = _varint(head, position)
            if tag >> 3 == 0 or tag & 7 not in _WIRE_TYPES:
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
    except WireError:  # the end of the head
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


def encode(identity: int, value: int | bytes | memoryview) -> bytes:
    """Return a field with this number: a varint (not negative) for an int, otherwise bytes or a message."""
    if isinstance(value, int):
        return _encode_varint(identity << 3 | Wire.VARINT) + _encode_varint(value)
    return b"".join((_encode_varint(identity << 3 | Wire.LENGTH), _encode_varint(len(value)), value))


def float32(data: memoryview) -> float:
    """Return the last float of a field of 32-bit values. The last one counts in a field that is not repeated."""
    return float(struct.unpack("<f", data[-4:])[0])


def _encode_varint(number: int) -> bytes:
    out = bytearray()
    while number > 0x7F:
        out.append(number & 0x7F | 0x80)
        number >>= 7
    out.append(number)
    return bytes(out)


def _varint(message: memoryview, position: int) -> tuple[int, int]:
    """Return (number, position after it)."""
    value = 0
    for shift in range(0, 70, 7):
        if position >= len(message):
            raise WireError("the file is truncated: it ends in the middle of a number")
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value & 0xFFFF_FFFF_FFFF_FFFF, position
    raise WireError(f"the number that ends at byte {position - 1:,} is too long")


def _run(message: memoryview, start: int, position: int, width: int) -> tuple[memoryview, int]:
    """Return the bytes of the fixed-size value whose tag is at `start`, and of all following values with that tag.

    Weights can be stored like this, with one tag per value. Parsing 61 million values one by one would take a minute.
    """
    if len(message) - position < width:
        raise WireError("the file is truncated: it ends in the middle of a number")
    if position - start != 1:
        return message[position : position + width], position + width
    stride, tag = width + 1, message[start]
    maximum, found, block = (len(message) - start) // stride, 1, _FIRST_BLOCK
    while found < maximum:
        # The block doubles each time, so that many short runs cost no more than one long run.
        count = min(block, maximum - found)
        tags = np.frombuffer(message, np.uint8, count * stride, start + found * stride)[::stride]
        equal = count if bool((tags == tag).all()) else int(np.argmin(tags == tag))
        found += equal
        if equal < count:
            break
        block *= 2
    rows = np.frombuffer(message, np.uint8, found * stride, start).reshape(found, stride)
    return memoryview(rows[:, 1:].tobytes()), start + found * stride
