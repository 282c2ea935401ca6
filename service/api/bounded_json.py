"""Parses JSON from clients without stopping the event loop for long.

Python's JSON parser holds the GIL until it returns, so a thread of its own does not help: 20 MB of small lists would
stop every other thread for seconds.

Guarantees: `loads` parses at most `MAX_VALUES` values, which takes about 20 ms. A long list of numbers is parsed in
pieces by `Numbers`, which lets other threads run in between.
Out of scope: limiting the number of bytes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

MAX_VALUES: Final = 100_000
_PIECE_BYTES: Final = 64 * 1024
_MIN_LIST_BYTES: Final = 100_000  # a shorter list is parsed with the rest of the document
_SPACE: Final = b" \t\r\n"
_NUMBER: Final = b"0123456789+-.eE"
_NAME: Final = b'"data"'
_COLON = re.compile(rb"[ \t\r\n]*:[ \t\r\n]*(?=\[)")
_LIST_CHARACTERS = re.compile(rb"[\[\],0-9+\-.eE \t\r\n]*")


def loads(data: bytes) -> Any:
    """Parse a JSON document. Raises ValueError with the end of a sentence: invalid, nested too deeply, too many values.

    The number of values is not exact: commas and brackets inside strings count too.
    """
    if sum(data.count(mark) for mark in (b",", b"[", b"{")) > MAX_VALUES:
        raise ValueError(f"has more than {MAX_VALUES:,} values")
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("is not valid JSON (it is nested too deeply)") from None
    except ValueError as error:
        raise ValueError(f"is not valid JSON ({error})") from None


@dataclass(frozen=True, slots=True)
class Numbers:
    """The text of a long list of numbers, which may be nested. It is not checked yet."""

    text: bytes

    def parse(self, *shapes: Sequence[int]) -> NDArray[np.uint8]:
        """Return the values as uint8 [n], where all `shapes` have n values.

        Raises ValueError unless the list has one of the shapes and contains only whole numbers from 0 to 255.
        """
        structure = b",".join(piece.translate(None, _SPACE + _NUMBER) for piece in self._pieces())
        if not any(structure == _structure(shape) for shape in shapes):
            found = structure.count(b",") + 1
            raise ValueError(f"data has {found:,} values, or is nested differently")
        values = np.empty(math.prod(shapes[0]), np.uint8)
        filled = 0
        for piece in self._pieces():
            try:
                part = np.asarray(json.loads(b"[%b]" % piece.translate(None, b"[]")))
            except (ValueError, OverflowError):
                raise ValueError("data is not a regular list of numbers") from None
            if part.dtype.kind not in "iu" or part.min() < 0 or part.max() > 255:
                raise ValueError("data must contain whole numbers from 0 to 255")
            values[filled : filled + len(part)] = part
            filled += len(part)
        return values

    def _pieces(self) -> list[bytes]:
        """Split the text at commas, which are left out."""
        pieces, start = [], 0
        while start < len(self.text):
            end = self.text.find(b",", start + _PIECE_BYTES)
            end = len(self.text) if end < 0 else end
            pieces.append(self.text[start:end])
            start = end + 1
        return pieces


def cut_numbers(document: bytes, placeholder: str) -> tuple[bytes, Numbers | None]:
    """Replace the first long list of numbers named "data" by a string; return the document and the list, if any."""
    found = -1
    while (found := document.find(_NAME, found + 1)) >= 0:
        colon = _COLON.match(document, found + len(_NAME))
        # Quotation marks inside a JSON string are escaped, so the name is not inside one.
        if colon is None or document[found - 1 : found] == b"\\":
            continue
        start = end = colon.end()
        while (match := _LIST_CHARACTERS.match(document, end, end + _PIECE_BYTES)) and match.end() > end:
            end = match.end()
        end = document.rfind(b"]", start, end) + 1
        if end - start >= _MIN_LIST_BYTES:
            name = json.dumps(placeholder).encode()
            return b"".join((document[:start], name, document[end:])), Numbers(document[start:end])
    return document, None


def _structure(shape: Sequence[int]) -> bytes:
    """Return the brackets and commas of a list of this shape."""
    text = b""
    for size in reversed(shape):
        text = b"[%b]" % b",".join([text] * size)
    return text
