"""The answer of `GET /v1/index/duplicates`."""

from __future__ import annotations

from datetime import datetime

from pydantic import BaseModel


class GroupImage(BaseModel):
    """An image of a group of near-duplicates. `size` is in bytes, `width` and `height` are in pixels."""

    key: str
    sha256: str
    size: int
    width: int
    height: int
    added: datetime


class NearImageInfo(GroupImage):
    """An image of a group, and its Euclidean distance from the one to keep."""

    distance: float


class DuplicateGroupInfo(BaseModel):
    """Images that are linked by pairs of near-duplicates.

    `keep` is the image with the most pixels, then with the largest file, then the oldest one. `others` are the other
    images, the nearest to it first. `size` counts all images of the group.
    """

    keep: GroupImage
    size: int
    others: list[NearImageInfo]


class DuplicatesAnswer(BaseModel):
    """Groups of near-duplicate images, largest first.

    `complete` is false if groups or images are missing; `note` then says why, and how to find them.
    """

    groups: list[DuplicateGroupInfo]
    complete: bool
    note: str
