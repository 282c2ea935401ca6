"""Reads small JSON bodies and applies JSON merge patches.

Guarantees: a body over the limit is rejected as early as possible; a patch never makes metadata nested deeper than the
index allows, whatever the depth of the patch.
Out of scope: images (see upload.py), storing anything.
References: RFC 7396 (JSON Merge Patch).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request

from index.errors import MetadataError
from index.records import MAX_METADATA_DEPTH
from service.api.bounded_json import loads
from service.api.upload import UNSPECIFIC_TYPES, media_type, read_body
from service.errors import BodyMalformedError, BodyTypeError

PATCH_TYPES = ("application/merge-patch+json", "application/json")
MAX_KEYS = 1000
_MAX_BYTES = 64 * 1024
_MAX_CHANGES_BYTES = 1024 * 1024


async def receive_patch(request: Request, timeout_s: float) -> dict[str, Any]:
    """Read a JSON object of at most 64 KiB. Its Content-Type is in `PATCH_TYPES`, or says nothing.

    Raises BodyTypeError, BodyTooLargeError, BodyTimeoutError, BodyMalformedError, ClientGoneError.
    """
    return _parse(await _receive(request, PATCH_TYPES, timeout_s))


@dataclass(frozen=True, slots=True)
class Changes:
    """Changes of the metadata of several images.

    keys: of the images, if the body names them. patch: a merge patch; None removes all metadata. add, remove: values
    of lists, by the name of their field.
    """

    keys: Sequence[str]
    patch: dict[str, Any] | None
    add: dict[str, list[Any]]
    remove: dict[str, list[Any]]

    def apply(self, old: dict[str, Any]) -> dict[str, Any]:
        """Return the new metadata of an image. Raises MetadataError."""
        new = {} if self.patch is None else merge_patch(old, self.patch)
        for name in self.add.keys() | self.remove.keys():
            values = _values_of(new, name)
            removed, added = self.remove.get(name, []), self.add.get(name, [])
            kept = [value for value in values if not _is_among(value, removed)]
            kept += [value for value in added if not _is_among(value, kept)]
            if not kept:
                new.pop(name, None)
            elif kept != values:
                new[name] = kept
        return new


async def receive_changes(request: Request, timeout_s: float) -> Changes:
    """Read {"keys": [...], "metadata": {...}, "add": {...}, "remove": {...}}, of at most 1 MiB.

    Raises as `receive_patch` does, and MetadataError if something else is to be changed.
    """
    document = _parse(await _receive(request, PATCH_TYPES, timeout_s, _MAX_CHANGES_BYTES))
    keys, patch = document.pop("keys", []), document.pop("metadata", {})
    add, remove = (_lists(name, document.pop(name, {})) for name in ("add", "remove"))
    for name in document:
        raise MetadataError(f'can be changed by "metadata", "add" and "remove", but {name!r} was sent')
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise BodyMalformedError("keys must be a list of strings.")
    if len(keys) > MAX_KEYS:
        raise BodyMalformedError(f"{len(keys):,} keys were sent, but at most {MAX_KEYS:,} are allowed in one request.")
    if not isinstance(patch, dict | None):
        raise MetadataError(f"is a {type(patch).__name__}, not an object")
    return Changes(keys, patch, add, remove)


async def receive_parameters(request: Request, timeout_s: float) -> dict[str, Any]:
    """Read an optional JSON object of at most 64 KiB: {} if the body is empty. Raises as `receive_patch` does."""
    data = await _receive(request, ("application/json",), timeout_s)
    return _parse(data) if data.strip() else {}


async def _receive(request: Request, types: Sequence[str], timeout_s: float, max_bytes: int = _MAX_BYTES) -> bytes:
    kind = media_type(request)
    if kind not in (*types, *UNSPECIFIC_TYPES):
        raise BodyTypeError(kind, f"Send {' or '.join(types)}.")
    return b"".join([chunk async for chunk in read_body(request, max_bytes, timeout_s)])


def _parse(data: bytes) -> dict[str, Any]:
    try:
        document = loads(data)
    except ValueError as error:
        raise BodyMalformedError(f"The body {error}.") from None
    if not isinstance(document, dict):
        raise BodyMalformedError(f"The body must be a JSON object, but is a {type(document).__name__}.")
    return document


def _lists(part: str, document: object) -> dict[str, list[Any]]:
    """Check {"tags": ["night"]}, the part "add" or "remove" of a body."""
    if not isinstance(document, dict):
        raise BodyMalformedError(f"{part} must be a JSON object with a list of values for each name.")
    for name, values in document.items():
        if not isinstance(values, list) or not all(isinstance(value, str | int | float) for value in values):
            raise BodyMalformedError(f"{part}: {name!r} must be a list of texts, numbers or booleans.")
    return document


def _values_of(metadata: dict[str, Any], name: str) -> list[Any]:
    """Return the values of a field: those of a list, or its only one."""
    value = metadata.get(name)
    if isinstance(value, dict):
        raise MetadataError(f"has an object with the name {name!r}, so that no values can be added to it or removed")
    return value if isinstance(value, list) else [] if value is None else [value]


def _is_among(value: object, values: list[Any]) -> bool:
    """Return whether a value is in a list. Python calls True and 1 equal; JSON does not."""
    return any(value == other and isinstance(value, bool) == isinstance(other, bool) for other in values)


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
