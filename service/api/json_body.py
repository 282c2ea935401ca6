"""Reads small JSON bodies and applies JSON merge patches.

Guarantees: a body over the limit is rejected as early as possible; a patch never makes metadata nested deeper than the
index allows, whatever the depth of the patch.
Out of scope: images (see upload.py), storing anything.
References: RFC 7396 (JSON Merge Patch).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from starlette.requests import Request

from index.errors import MetadataError
from index.records import MAX_METADATA_DEPTH
from service.api.bounded_json import loads
from service.api.upload import UNSPECIFIC_TYPES, media_type, read_body
from service.errors import BodyMalformedError, BodyTypeError

PATCH_TYPES = ("application/merge-patch+json", "application/json")
_MAX_BYTES = 64 * 1024


async def receive_patch(request: Request, timeout_s: float) -> dict[str, Any]:
    """Read a JSON object of at most 64 KiB. Its Content-Type is in `PATCH_TYPES`, or says nothing.

    Raises BodyTypeError, BodyTooLargeError, BodyTimeoutError, BodyMalformedError, ClientGoneError.
    """
    return _parse(await _receive(request, PATCH_TYPES, timeout_s))


async def receive_parameters(request: Request, timeout_s: float) -> dict[str, Any]:
    """Read an optional JSON object of at most 64 KiB: {} if the body is empty. Raises as `receive_patch` does."""
    data = await _receive(request, ("application/json",), timeout_s)
    return _parse(data) if data.strip() else {}


async def _receive(request: Request, types: Sequence[str], timeout_s: float) -> bytes:
    kind = media_type(request)
    if kind not in (*types, *UNSPECIFIC_TYPES):
        raise BodyTypeError(kind, f"Send {' or '.join(types)}.")
    return b"".join([chunk async for chunk in read_body(request, _MAX_BYTES, timeout_s)])


def _parse(data: bytes) -> dict[str, Any]:
    try:
        document = loads(data)
    except ValueError as error:
        raise BodyMalformedError(f"The body {error}.") from None
    if not isinstance(document, dict):
        raise BodyMalformedError(f"The body must be a JSON object, but is a {type(document).__name__}.")
    return document


def merge_patch(target: object, patch: object, levels: int = MAX_METADATA_DEPTH) -> Any:
    """Apply `patch` to `target` and return the result: objects are merged, null removes, any other value replaces.

    Raises MetadataError if the patch has more than `levels` levels of objects.
    Reference: RFC 7396, section 2.
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
