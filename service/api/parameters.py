"""The parameters of paths, version 1: their ranges, and how a value outside is refused.

Promises: a parameter that a path does not know is refused, not ignored; a refusal names the whole range.
Does not: check what only the model knows, such as the number of classes.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema
from pydantic_core import PydanticCustomError

MAX_NEIGHBOURS = 1000
MAX_PAGE = 1000


def _whole(expected: str, low: int, high: int) -> BeforeValidator:
    """Check a whole number; every refusal says `expected`, the whole range, and not the bound that was hit."""

    def check(value: object) -> int:
        try:
            number = int(str(value))
        except ValueError:
            number = low - 1
        if not low <= number <= high:
            raise PydanticCustomError("range", "expected {expected}", {"expected": expected})
        return number

    return BeforeValidator(check)


def _one_or_ten(value: object) -> int:
    if str(value) not in ("1", "10"):
        raise PydanticCustomError("range", "expected 1 or 10")
    return int(str(value))


def _span(low: int, high: int) -> WithJsonSchema:
    return WithJsonSchema({"type": "integer", "minimum": low, "maximum": high})


class _Query(BaseModel):
    model_config = ConfigDict(extra="forbid")


_WHERE = (
    "A filter on metadata, such as label:cat, label:cat,dog, year>=2020 or camera.model:D90; repeat it for several "
    "that must all hold. A value with a comma is written as a JSON string."
)


class ClassifyQuery(_Query):
    """Parameters of `POST /v1/classify`."""

    k: int | None = Field(
        None,
        json_schema_extra={"minimum": 1},  # checked where the number of classes is known
        description="How many classes, 1 to as many as the model has; unset: 5, or all where there are fewer.",
    )
    views: Annotated[int, BeforeValidator(_one_or_ten), WithJsonSchema({"type": "integer", "enum": [1, 10]})] = Field(
        1, description="1 (the centre) or 10 (corners, centre, mirrored; slower, more exact)."
    )

    model: str | None = Field(
        None, description="NAME:VERSION, or NAME for its newest, instead of the active version.", max_length=80
    )


class SearchQuery(_Query):
    """Parameters of searches: those of `GET /v1/images/{key}/similar`."""

    k: Annotated[
        int, _whole(f"a whole number from 1 to {MAX_NEIGHBOURS}", 1, MAX_NEIGHBOURS), _span(1, MAX_NEIGHBOURS)
    ] = Field(6, description=f"How many neighbours, 1 to {MAX_NEIGHBOURS}.")
    mode: Literal["exact", "fast", "codes"] | None = Field(
        None,
        description="exact: Euclidean distance of fc7 over all images. fast: short codes first, then the best of them "
        "exactly. codes: Hamming distance of binary codes alone. Unset: fast once the index is large, else exact.",
    )

    where: list[str] = Field([], description=_WHERE)


class ModelSearchQuery(SearchQuery):
    """Parameters of `POST /v1/search`."""

    model: str | None = Field(
        None,
        description="NAME:VERSION whose vectors of all images are kept, instead of the index's model.",
        max_length=80,
    )


class WhereQuery(_Query):
    """Parameters of `DELETE /v1/images`."""

    where: list[str] = Field(min_length=1, description=_WHERE)


class ListQuery(_Query):
    """Parameters of `GET /v1/images`."""

    cursor: str | None = Field(None, description="`next_cursor` of the page before.")
    where: list[str] = Field([], description=_WHERE)
    limit: Annotated[int, _whole(f"a whole number from 1 to {MAX_PAGE}", 1, MAX_PAGE), _span(1, MAX_PAGE)] = Field(
        100, description=f"How many images, 1 to {MAX_PAGE}."
    )


class DuplicatesQuery(_Query):
    """Parameters of `GET /v1/index/duplicates`."""

    threshold: float = Field(ge=0, le=1e6, description="The largest Euclidean distance of a pair.")
    limit: Annotated[int, _whole(f"a whole number from 1 to {MAX_PAGE}", 1, MAX_PAGE), _span(1, MAX_PAGE)] = Field(
        100, description=f"How many pairs, 1 to {MAX_PAGE}: the nearest ones."
    )
    where: list[str] = Field([], description=_WHERE)
