"""Listings: which images they return, in which order, and the cursors of their pages.

A cursor is the position of the last image of a page, encoded with the index and the listing that it belongs to.

Guarantees: a cursor of another index, filter, prefix or order is rejected, and so is a malformed one.
Out of scope: secrecy and authenticity. A client that forges a cursor only skips images.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, get_args

from index.errors import CursorError
from index.filters import Where

Order = Literal["added", "-added", "updated", "-updated", "key", "-key", "random"]
ORDERS: tuple[Order, ...] = get_args(Order)
NoveltyOrder = Literal["novelty", "-novelty"]
_LAST_CHARACTER = chr(0x10FFFF)
_SURROGATES = range(0xD800, 0xE000)


@dataclass(frozen=True, slots=True)
class Listing:
    """Which images a listing returns. order: "-" is descending. seed: of the order `random`. prefix: of the keys."""

    where: Where | None
    prefix: str
    order: Order | NoveltyOrder
    seed: int

    @property
    def sort_key(self) -> str:
        """The order without its direction."""
        return self.order.removeprefix("-")

    @property
    def descending(self) -> bool:
        """Whether the largest value comes first."""
        return self.order.startswith("-")

    @property
    def prefix_end(self) -> str | None:
        """The smallest text, by code point, that is greater than every text with the prefix; None if there is none."""
        start = self.prefix.rstrip(_LAST_CHARACTER)
        if not start:
            return None
        following = ord(start[-1]) + 1
        return start[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)

    @property
    def digest(self) -> str:
        """A short hash, for cursors."""
        parts = [self.where.digest if self.where else "", self.prefix, self.order, self.seed]
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:12]


def make_cursor(identity: str, listing: Listing, last: object) -> str:
    """Return the cursor of the page that follows the image at the position `last`, a JSON value."""
    text = json.dumps([identity[:12], listing.digest, last])
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


def read_cursor(cursor: str, identity: str, listing: Listing, valid: Callable[[Any], bool]) -> Any:
    """Return the position after which the next page starts, if it is `valid`. Raises CursorError."""
    try:
        text = base64.b64decode(cursor.encode() + b"=" * (-len(cursor) % 4), altchars=b"-_", validate=True)
        found, digest, last = json.loads(text)
    except (ValueError, TypeError, binascii.Error, RecursionError):
        raise CursorError(cursor, "does not belong to this index") from None
    if found != identity[:12]:
        raise CursorError(cursor, "does not belong to this index")
    if digest != listing.digest:
        raise CursorError(cursor, "belongs to another filter, prefix or order")
    if not valid(last):
        raise CursorError(cursor, "does not belong to this index")
    return last


def is_id(value: object) -> bool:
    """Return whether this is a whole number that SQLite can store, and not negative."""
    return type(value) is int and 0 <= value < 2**63
