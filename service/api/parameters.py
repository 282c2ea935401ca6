"""Query parameters of the HTTP API, version 1.

Guarantees: unknown parameters are rejected; an error states the whole valid range.
Out of scope: checks that depend on the model, such as the number of classes.
"""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_COUNT = 1000
_WHOLE = re.compile(r"[0-9]{1,18}")


def _count(value: object) -> int:
    text = str(value)
    number = int(text) if _WHOLE.fullmatch(text) else 0  # `int` also accepts digits of other scripts, "1_0" and " 1"
    if not 1 <= number <= MAX_COUNT:
        raise PydanticCustomError("range", "expected a whole number from 1 to {high}", {"high": MAX_COUNT})
    return number


def _one_or_ten(value: object) -> int:
    if str(value) not in ("1", "10"):
        raise PydanticCustomError("range", "expected 1 or 10")
    return int(str(value))


_Count = Annotated[
    int, BeforeValidator(_count), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_COUNT})
]
_WHERE = (
    "A filter on metadata, such as label:cat, label:cat,dog, year>=2020 or camera.model:D90. Repeat the parameter to "
    "combine filters: all of them must match. Write a value that contains a comma as a JSON string."
)


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


class ClassifyQuery(_Query):
    """Parameters of `POST /v1/classify`."""

    k: int | None = Field(
        None,
        json_schema_extra={"minimum": 1},  # validated by the route, which knows the number of classes
        description="Number of classes to return, from 1 to the number of classes of the model. The default is 5, or "
        "all classes if there are fewer.",
    )
    views: Annotated[int, BeforeValidator(_one_or_ten), WithJsonSchema({"type": "integer", "enum": [1, 10]})] = Field(
        1,
        description="Number of crops to average over: 1 (the center), or 10 (the corners, the center, and their "
        "mirror images), which is slower and more accurate.",
    )
    explain: bool = Field(
        False,
        description="Add a heat map that shows what in the image speaks for the most probable class. It requires one "
        "view, and takes up to half as long again as the classification.",
    )
    model: str | None = Field(
        None,
        description="Model to use instead of the active version: NAME:VERSION, or NAME for its newest version.",
        max_length=80,
    )


class ExplainQuery(_Query):
    """Parameters of `POST /v1/explain`."""

    class_: str | None = Field(
        None,
        alias="class",
        description="Class to explain: its label, or its index. The default is the most probable class.",
        max_length=1000,
    )
    near: str | None = Field(
        None,
        description="Key of an indexed image. The answer then shows what makes the image similar to this one, instead "
        "of what speaks for a class.",
        max_length=1000,
    )
    format: Literal["png", "json"] = Field("png", description="A picture, or the values of the grid.")
    overlay: bool = Field(
        True,
        description="Draw the heat map over the part of the image that the model sees (224x224 pixels). Without, the "
        "picture shows only the cells of the grid.",
    )
    model: str | None = Field(
        None,
        description="Model to use instead of the active version, or with `near` instead of the searched one: "
        "NAME:VERSION, or NAME for its newest version.",
        max_length=80,
    )


class SearchQuery(_Query):
    """Parameters of `GET /v1/images/{key}/similar`."""

    k: _Count = Field(6, description=f"Number of neighbors to return, from 1 to {MAX_COUNT}.")
    mode: Literal["exact", "fast", "codes"] | None = Field(
        None,
        description="Search mode. exact compares the fc7 vectors of all images. fast preselects images by short codes "
        "and then compares their fc7 vectors. codes compares only binary codes, by Hamming distance. The default is "
        "fast for a large index, and exact otherwise.",
    )
    where: list[str] = Field([], description=_WHERE)


class ModelSearchQuery(SearchQuery):
    """Parameters of `POST /v1/search`."""

    model: str | None = Field(
        None,
        description="Model to search with instead of the active version of the index: NAME:VERSION. The index must "
        "hold its vectors for all images.",
        max_length=80,
    )


class WhereQuery(_Query):
    """Parameters of `DELETE /v1/images`."""

    where: list[str] = Field(min_length=1, description=_WHERE)


class ListQuery(_Query):
    """Parameters of `GET /v1/images`."""

    cursor: str | None = Field(None, description="The `next_cursor` of the previous page.")
    where: list[str] = Field([], description=_WHERE)
    limit: _Count = Field(100, description=f"Number of images per page, from 1 to {MAX_COUNT}.")


class DuplicatesQuery(_Query):
    """Parameters of `GET /v1/index/duplicates`."""

    threshold: float = Field(ge=0, le=1e6, description="Maximum Euclidean distance between two near-duplicates.")
    limit: _Count = Field(100, description=f"Number of groups to return, from 1 to {MAX_COUNT}, largest first.")
    where: list[str] = Field([], description=_WHERE)
