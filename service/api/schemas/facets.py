"""The answer of `GET /v1/index/fields`."""

from __future__ import annotations

from pydantic import BaseModel, Field, StrictBool, StrictFloat, StrictInt, StrictStr

from index.fields import FieldType


class FieldValueInfo(BaseModel):
    """A value, and how many images have it."""

    value: StrictBool | StrictInt | StrictFloat | StrictStr
    count: int


class FieldInfo(BaseModel):
    """A metadata field with values of one type. `name` is as in filters.

    `images`: how many images have it. `distinct`: number of different values. `values`: the most frequent ones first;
    texts longer than 256 characters are left out. `minimum`, `maximum`: of numbers.
    """

    name: str
    type: FieldType
    images: int
    distinct: int
    values: list[FieldValueInfo]
    minimum: int | float | None = Field(description="Null unless the values are numbers.")
    maximum: int | float | None = Field(description="Null unless the values are numbers.")


class FieldsAnswer(BaseModel):
    """The metadata fields of the matching images, those that most images have first.

    `images`: how many images match. `complete`: false if more than 200 fields exist; the others are not listed.
    """

    images: int
    fields: list[FieldInfo]
    complete: bool
