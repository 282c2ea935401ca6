"""Cursors of a listing: the last image of a page, encoded with the index and the filter that it belongs to.

Guarantees: a cursor of another index, a cursor of another filter and a malformed cursor are rejected.
Out of scope: secrecy and authenticity. A client that forges a cursor only skips images.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable
from typing import TypeVar

from index.errors import CursorError
from index.filters import Where

Id = TypeVar("Id", int, str)


def make_cursor(identity: str, where: Where | None, last: int | str) -> str:
    """Return the cursor of the page that follows the image with the id `last`."""
    text = json.dumps([identity[:12], where.digest if where else "", last])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, identity: str, where: Where | None, kind: type[Id], valid: Callable[[Id], bool]) -> Id:
    """Return the id after which the next page starts: a `valid` one of the type `kind`. Raises CursorError."""
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found, digest, last = json.loads(text)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise CursorError(cursor, "does not belong to this index") from None
    if found != identity[:12] or type(last) is not kind or not valid(last):
        raise CursorError(cursor, "does not belong to this index")
    if digest != (where.digest if where else ""):
        raise CursorError(cursor, "belongs to another filter")
    return last
