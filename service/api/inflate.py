"""Decompress a request body, up to a limit."""

from __future__ import annotations

import zlib
from typing import Final

from service.errors import BodyEncodingError, BodyMalformedError, BodyTooLargeError

_WINDOW_BITS: Final = {"gzip": (31,), "deflate": (15, -15)}  # for zlib; clients send "deflate" with or without a header
_MAX_SHOWN: Final = 60  # characters of a client's value in an error message


def inflate(body: bytes, encoding: str | None, limit: int) -> bytes:
    """Undo the Content-Encoding of a body, producing at most `limit` bytes.

    Raises BodyEncodingError, BodyTooLargeError, BodyMalformedError.
    """
    name = (encoding or "identity").strip().lower()
    if name == "identity":
        return body
    if name not in _WINDOW_BITS:
        raise BodyEncodingError(ascii(name[:_MAX_SHOWN]), ", ".join(_WINDOW_BITS))
    reason = ""
    for window in _WINDOW_BITS[name]:
        stream = zlib.decompressobj(window)
        try:
            plain = stream.decompress(body, limit + 1)
        except zlib.error as exc:
            reason = reason or str(exc)
            continue
        if stream.eof or len(plain) > limit or not reason:  # without a header, almost any bytes start to decompress
            break
    else:
        raise BodyMalformedError(f"The body is not valid {name}: {reason}.")
    if len(plain) > limit:
        raise BodyTooLargeError(limit)
    if not stream.eof:
        raise BodyMalformedError(f"The {name} body is incomplete.")
    if stream.unused_data:
        raise BodyMalformedError(f"{len(stream.unused_data):,} bytes follow the end of the {name} body.")
    return plain
