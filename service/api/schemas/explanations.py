"""Explanations of answers: heat maps."""

from __future__ import annotations

import base64
from typing import Annotated

from pydantic import BaseModel, Field


class Explanation(BaseModel):
    """Which cells of the image speak for a class, or for the similarity to an indexed image.

    `grid` has the rows from top to bottom, for the crop of 224x224 pixels that the model sees: values from 0 to 1, with
    1 for the hottest cell. All are 0 if no cell speaks for it. `class` and `index` name the class; they are null if
    `near` is the key of an image, whose Euclidean distance in fc7 is `distance`.
    """

    class_: Annotated[str | None, Field(serialization_alias="class")]
    index: int | None
    near: str | None = None
    distance: float | None = None
    grid: list[list[float]]


class DrawnExplanation(Explanation):
    """An explanation with a PNG of the heat map over the crop, as a data URI."""

    image: str


def data_uri(png: bytes) -> str:
    """Return a PNG as a data URI."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
