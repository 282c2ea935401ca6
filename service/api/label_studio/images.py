"""The image of a task: in a data: URI, already in the index, or at Label Studio.

Guarantees: nothing else is read. Other URLs, files and cloud addresses are refused with the reason.
Out of scope: decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qs, unquote, urlsplit

from index.errors import InvalidKeyError, KeyNotFoundError, PictureNotFoundError
from index.interface import ImageIndex
from index.records import check_key
from index.suggestions import KEY_FIELD
from service.api.bodies.json_images import decode_data_uri
from service.api.label_studio.client import LabelStudioClient
from service.api.label_studio.config import Control
from service.api.label_studio.errors import LabelStudioRefusedError, TaskImageError
from service.errors import BodyMalformedError

_UPLOADS: Final = "/data/"


@dataclass(frozen=True, slots=True)
class TaskImage:
    """The image of a task. key: of the indexed image that the task names, or under which it is added."""

    data: bytes
    key: str
    indexed: bool

    @property
    def sha256(self) -> str:
        """The hash of the bytes."""
        return hashlib.sha256(self.data).hexdigest()


def read_image(
    task: Mapping[str, Any], control: Control, index: ImageIndex, client: LabelStudioClient | None
) -> TaskImage:
    """Return the image of a task. Blocks. Raises LabelStudioRefusedError, TaskImageError, and errors of the index."""
    number, data = task.get("id"), task.get("data")
    if not isinstance(data, Mapping):
        raise TaskImageError(number, "it has no data")
    key = indexed_key(data, index)
    if key is not None:
        try:
            return TaskImage(index.picture(key), key, indexed=True)
        except (KeyNotFoundError, PictureNotFoundError):
            pass  # deleted meanwhile, or stored without a picture: use the image of the task
    value = data.get(control.data)
    if not isinstance(value, str) or not value.strip():
        raise TaskImageError(number, f"its data has no text named {control.data!r}")
    if value[:5].lower() == "data:":
        try:
            content = decode_data_uri(value, control.data)
        except BodyMalformedError as error:
            raise TaskImageError(number, str(error).rstrip(".")) from None
        return TaskImage(content, hashlib.sha256(content).hexdigest(), indexed=False)
    if client is None:
        raise LabelStudioRefusedError(
            number,
            f"{value[:100]!r} is not a data: URI. To let fc7 read images of Label Studio, set FC7_LABEL_STUDIO_URL to "
            "its address and FC7_LABEL_STUDIO_TOKEN to an access token, and restart the server",
        )
    content = client.fetch(number, value)
    return TaskImage(content, _key_of(value, content), indexed=False)


def indexed_key(data: Mapping[str, Any], index: ImageIndex) -> str | None:
    """Return the key that a task names, if the index has it."""
    key = data.get(KEY_FIELD)
    try:
        return key if isinstance(key, str) and index.contains(key) else None
    except InvalidKeyError:
        return None


def _key_of(url: str, content: bytes) -> str:
    """Return the key of a new image: the path of its file in Label Studio, or else its hash."""
    parts = urlsplit(url)
    stored = parse_qs(parts.query).get("d", [""])[0]  # /data/local-files/?d=folder/cat.jpg
    path = stored or unquote(parts.path[parts.path.find(_UPLOADS) + len(_UPLOADS) :] if _UPLOADS in parts.path else "")
    try:
        return check_key(path.strip("/"))
    except InvalidKeyError:
        return hashlib.sha256(content).hexdigest()
