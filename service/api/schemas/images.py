"""Indexed images."""

from __future__ import annotations

from dataclasses import asdict
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from index.records import AddOutcome, ImageRecord
from service.api.schemas.answers import ModelName
from service.api.schemas.links import thumbnail_path


class ImageInfo(BaseModel):
    """An indexed image. `size` is in bytes; `width` and `height` are in pixels, after rotation; times are in UTC."""

    key: str
    sha256: str
    size: int
    width: int
    height: int
    metadata: dict[str, Any]
    added: datetime
    updated: datetime
    thumbnail: str | None = Field(description="Path of the thumbnail. Null if none is stored.")

    @classmethod
    def of(cls, record: ImageRecord, root_path: str) -> ImageInfo:
        """Convert a record of the index. root_path: the prefix of its links."""
        thumbnail = thumbnail_path(record.key, root_path) if record.has_picture else None
        return cls.model_validate(asdict(record) | {"thumbnail": thumbnail})


class ImagePage(BaseModel):
    """A page of indexed images. `next_cursor` is null on the last page."""

    images: list[ImageInfo]
    next_cursor: str | None


class AddResult(BaseModel):
    """The result of adding an image: added (new key), replaced (the key had another image or metadata) or unchanged."""

    outcome: AddOutcome
    image: ImageInfo


class AddAnswer(BaseModel):
    """One result for each image, in the order of the request."""

    model: ModelName
    results: list[AddResult]


class MetadataPatch(BaseModel):
    """A JSON merge patch (RFC 7396) of an image's metadata. Names with the value null are removed."""

    metadata: dict[str, Any] | None


class MetadataChanged(BaseModel):
    """The number of images that were named or matched, and how many of them have other metadata now."""

    matched: int
    changed: int


class KeysPatch(BaseModel):
    """Changes of the metadata of several images.

    keys: which ones, unless the parameter `where` says so. metadata: a JSON merge patch. add, remove: values of lists.
    """

    keys: list[str] | None = None
    metadata: dict[str, Any] | None = {}
    add: dict[str, list[str | float | bool]] = {}
    remove: dict[str, list[str | float | bool]] = {}


class DeletedAnswer(BaseModel):
    """The number of deleted images."""

    deleted: int
