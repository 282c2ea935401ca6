"""Small JSON bodies, and what a merge patch makes of metadata.

Promises: a body over the limit is refused as soon as that is known; a patch never makes metadata deeper than the index
keeps, however deep it is itself.
Does not: read images (see bodies.py), store anything.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from starlette.requests import ClientDisconnect, Request

from index.errors import MetadataError
from index.records import MAX_METADATA_DEPTH
from service.errors import BodyMalformedError, BodyTimeoutError, BodyTooLargeError, BodyTypeError, ClientGoneError

MERGE_PATCH = "application/merge-patch+json"
JSON = "application/json"
MAX_DOCUMENT_BYTES = 64 * 1024


async def receive_document(request: Request, taken: Sequence[str], seconds: float) -> dict[str, Any]:
    """Read a JSON object of at most 64 KB, sent with one of the content types `taken`.

    Raises BodyTypeError, BodyTooLargeError, BodyTimeoutError, BodyMalformedError, ClientGoneError.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind not in taken:
        raise BodyTypeError(kind, f"Send {' or '.join(taken)}.")
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                if len(data) + len(chunk) > MAX_DOCUMENT_BYTES:
                    raise BodyTooLargeError(MAX_DOCUMENT_BYTES)
                data += chunk
    except TimeoutError:
        raise BodyTimeoutError(seconds) from None
    except ClientDisconnect:
        raise ClientGoneError from None
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise BodyMalformedError(f"the body is not JSON ({error})") from None
    if not isinstance(document, dict):
        raise BodyMalformedError(f"the body is a JSON {type(document).__name__}, not an object")
    return document


def merge_patch(target: object, patch: object, levels: int = MAX_METADATA_DEPTH) -> Any:
    """Return `target` changed by `patch`: objects are merged, null removes, anything else replaces.

    Raises MetadataError when the patch has more than `levels` levels of objects.
    Source: RFC 7396, section 2.
    """
    if not isinstance(patch, dict):
        return patch
    if levels == 0:
        raise MetadataError(f"would be nested deeper than {MAX_METADATA_DEPTH} levels")
    merged = dict(target) if isinstance(target, dict) else {}
    for name, value in patch.items():
        if value is None:
            merged.pop(name, None)
        else:
            merged[name] = merge_patch(merged.get(name), value, levels - 1)
    return merged
