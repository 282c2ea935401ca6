"""Links to resources of the API."""

from __future__ import annotations

from urllib.parse import quote


def image_path(key: str, root_path: str) -> str:
    """Return the path of an image below `root_path`, with its key encoded as a single path segment."""
    encoded = "%73uggestions" if key == "suggestions" else quote(key, safe="")  # GET of the key itself is taken
    return f"{root_path}/v1/images/{encoded}"


def thumbnail_path(key: str, root_path: str) -> str:
    """Return the path of the thumbnail of `key`."""
    return f"{image_path(key, root_path)}/thumbnail"
