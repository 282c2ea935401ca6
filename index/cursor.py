"""Cursors of a listing: where it goes on, and of which index and filter it is.

Promises: a cursor of another index, of another filter, or that was changed into no cursor at all, is refused.
Does not: keep a cursor's place secret, or sign it: who forges one skips images.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import cast

from index.errors import CursorError
from index.filters import Where


def make_cursor(identity: str, where: Where | None, last: int | str) -> str:
    """Return the cursor that goes on after the image with the id `last`."""
    text = json.dumps([identity[:12], where.digest if where else "", last])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, identity: str, where: Where | None) -> int:
    """Return the id that `cursor` goes on after, a number. Raises CursorError."""
    last = _read(cursor, identity, where)
    if type(last) is not int or not 0 <= last < 2**63:
        raise CursorError(cursor, "is not one of this index")
    return last


def read_text_cursor(cursor: str, identity: str, where: Where | None, valid: Callable[[object], bool]) -> str:
    """Return the id that `cursor` goes on after, a text that is `valid`. Raises CursorError."""
    last = _read(cursor, identity, where)
    if not isinstance(last, str) or not valid(last):
        raise CursorError(cursor, "is not one of this index")
    return last


def _read(cursor: str, identity: str, where: Where | None) -> object:
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found, digest, last = json.loads(text)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise CursorError(cursor, "is not one of this index") from None
    if found != identity[:12]:
        raise CursorError(cursor, "is not one of this index")
    if digest != (where.digest if where else ""):
        raise CursorError(cursor, "is one of another filter")
    return cast(object, last)
