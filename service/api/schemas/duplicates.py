"""The answer of `GET /v1/index/duplicates`."""

from __future__ import annotations

from pydantic import BaseModel


class NearImageInfo(BaseModel):
    """An image of a group of near-duplicates, and its Euclidean distance from the first image of the group."""

    key: str
    distance: float


class DuplicateGroupInfo(BaseModel):
    """Images that are linked by pairs of near-duplicates. `key` is the image that was stored first.

    `size` counts all images of the group; `images` lists the others, the nearest to the first one first.
    """

    key: str
    size: int
    images: list[NearImageInfo]


class DuplicatesAnswer(BaseModel):
    """Groups of near-duplicate images, largest first.

    `complete` is false if groups or images are missing; `note` then says why, and how to find them.
    """

    groups: list[DuplicateGroupInfo]
    complete: bool
    note: str
