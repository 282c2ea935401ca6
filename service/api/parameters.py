"""Query parameters of the HTTP API, version 1.

Guarantees: unknown parameters are rejected; an error states the whole valid range.
Out of scope: checks that depend on the model, such as the number of classes.
"""

from __future__ import annotations

import math
import re
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from index.cursor import NoveltyOrder, Order
from index.labels import LABEL_FIELD, VOTERS
from index.records import MAX_KEY_LENGTH
from service.indexing.job import JobKind

MAX_COUNT = 1000
DEFAULT_CLASSES = 5  # in an answer
_WHOLE = re.compile(r"[0-9]{1,18}")
_DECIMAL = re.compile(r"([0-9]{1,40}(\.[0-9]{0,40})?|\.[0-9]{1,40})([eE][-+]?[0-9]{1,3})?")


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


def _share(value: object) -> float:
    text = str(value)
    number = float(text) if _DECIMAL.fullmatch(text) else -1.0  # `float` also accepts "nan", "1_0" and " 1"
    if not 0 <= number <= 1:
        raise PydanticCustomError("range", "expected a number from 0 to 1")
    return number


_Threshold = Annotated[
    float | None,
    BeforeValidator(_share),
    WithJsonSchema({"type": "number", "minimum": 0, "maximum": 1}),
    Field(
        description="Share of the model's own validation images to accept: an image that is farther from the training "
        "images than these is unknown. 1 accepts everything. The default is `FC7_NOVELTY_THRESHOLD`."
    ),
]
_Count = Annotated[
    int, BeforeValidator(_count), WithJsonSchema({"type": "integer", "minimum": 1, "maximum": MAX_COUNT})
]
_WHERE = (
    "A filter on metadata, such as label:cat, label:cat,dog, year>=2020 or camera.model:D90. Repeat the parameter to "
    "combine filters: all of them must match. Write a value that contains a comma as a JSON string."
)


_INCLUDES = ("classes", "novelty")


def _includes(value: object) -> list[str]:
    given = [part.strip() for text in (value if isinstance(value, list) else [value]) for part in str(text).split(",")]
    names = list(dict.fromkeys(name for name in given if name))
    if set(names) - set(_INCLUDES):
        raise PydanticCustomError("include", "expected {names}, or several of them", {"names": " or ".join(_INCLUDES)})
    return names


def _distance(value: object) -> float:
    text = str(value)
    number = float(text) if _DECIMAL.fullmatch(text) else math.inf
    if not math.isfinite(number):
        raise PydanticCustomError("range", "expected a number of at least 0")
    return number


_Include = Annotated[
    list[str],
    BeforeValidator(_includes),
    WithJsonSchema({"type": "array", "items": {"type": "string", "enum": list(_INCLUDES)}}),
]
_Distance = Annotated[float | None, BeforeValidator(_distance), WithJsonSchema({"type": "number", "minimum": 0})]
_Prefix = Annotated[str, Field(max_length=MAX_KEY_LENGTH, description="Only keys that start with this text.")]
_Views = Annotated[int, BeforeValidator(_one_or_ten), WithJsonSchema({"type": "integer", "enum": [1, 10]})]
_VIEWS = (
    "Number of crops to average over: 1 (the center), or 10 (the corners, the center, and their mirror images), which "
    "is slower and more accurate."
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
    views: _Views = Field(1, description=_VIEWS)
    explain: bool = Field(
        False,
        description="Add a heat map that shows what in the image speaks for the most probable class. It requires one "
        "view and by=network, and takes up to half as long again as the classification.",
    )
    model: str | None = Field(
        None,
        description="Model to use instead of the active version: NAME:VERSION, or NAME for its newest version. With "
        "by=neighbours, the index must hold its vectors for all images.",
        max_length=80,
    )
    by: Literal["network", "neighbours"] = Field(
        "network",
        description="What classifies: the last layer of the network, or a vote of the nearest labeled images of the "
        "index, weighted by distance. With neighbours, the result has them as evidence, and can have classes that the "
        "network does not have.",
    )
    neighbours: _Count | None = Field(
        None, description=f"Number of labeled images that vote, from 1 to {MAX_COUNT}, with by=neighbours ({VOTERS})."
    )
    field: str | None = Field(
        None, description="Metadata field of their labels, such as label or camera.model, with by=neighbours (label)."
    )

    @model_validator(mode="after")
    def _only_with_neighbours(self) -> ClassifyQuery:
        for name in ("neighbours", "field"):
            if self.by != "neighbours" and getattr(self, name) is not None:
                raise PydanticCustomError("by", "{name} requires by=neighbours", {"name": name})
        return self

    threshold: _Threshold = None


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
    max_distance: _Distance = Field(
        None,
        description="Leave out images that are farther away. The distance is Euclidean, between fc7 vectors; with "
        "mode=codes it is the number of different bits.",
    )
    where: list[str] = Field([], description=_WHERE)


class ModelSearchQuery(SearchQuery):
    """Parameters of `POST /v1/search`."""

    model: str | None = Field(
        None,
        description="Model to search with instead of the active version of the index: NAME:VERSION. The index must "
        "hold its vectors for all images. Required for a search by vectors: the version that computed them.",
        max_length=80,
    )
    threshold: _Threshold = None
    include: _Include = Field(
        ["novelty"],
        description="What to return besides the neighbours, separated by commas or repeated: classes (the most "
        "probable classes of each image, as `predictions`) and novelty. Empty for none.",
    )


class EmbedQuery(_Query):
    """Parameters of `POST /v1/embed`."""

    encoding_format: Literal["float", "base64"] = Field(
        "float", description="float: lists of numbers. base64: the bytes of the numbers as float32, little-endian."
    )
    views: _Views = Field(1, description=_VIEWS)
    model: str | None = Field(
        None,
        description="Model to use instead of the active version: NAME:VERSION, or NAME for its newest version.",
        max_length=80,
    )


class NoQuery(_Query):
    """No parameters."""


class FieldsQuery(_Query):
    """Parameters of `GET /v1/index/fields`."""

    where: list[str] = Field([], description=_WHERE)
    field: str | None = Field(None, description="Only this field, such as label or camera.model.", max_length=1000)
    limit: _Count = Field(10, description=f"Number of values to return for each field, from 1 to {MAX_COUNT}.")


class WhereQuery(_Query):
    """Parameters of `DELETE /v1/images`."""

    where: list[str] = Field(min_length=1, description=_WHERE)


class PatchQuery(_Query):
    """Parameters of `PATCH /v1/images`."""

    where: list[str] = Field([], description=_WHERE)


class ListQuery(_Query):
    """Parameters of `GET /v1/images`."""

    cursor: str | None = Field(None, description="The `next_cursor` of the previous page.")
    where: list[str] = Field([], description=_WHERE)
    prefix: _Prefix = ""
    order: Order | NoveltyOrder | None = Field(
        None,
        description="Order of the images: added (when their key was first added), updated (when they last changed), "
        "key, novelty (distance in fc7 to the model's training images) or random; a - before it reverses it, so that "
        "-novelty lists the most unusual ones first. The default is added; on Milvus, key, and novelty is not "
        "supported.",
    )
    seed: int | None = Field(
        None, ge=0, le=2**31 - 1, description="With order=random: each number is another order. The default is 0."
    )
    limit: _Count = Field(100, description=f"Number of images per page, from 1 to {MAX_COUNT}.")


class JobQuery(_Query):
    """Parameters of `POST /v1/jobs`. All but `kind` are parameters of the kind of job."""

    kind: Literal[JobKind.ARCHIVE, JobKind.CLASSIFY, JobKind.HEAD, JobKind.MAP] = Field(
        JobKind.ARCHIVE,
        description="What the job does. archive: add the images of an archive to the index. classify: write the "
        "predictions for the images of an archive to a file. head: fit the last layer to labeled images. map: compute "
        "the map of the index.",
    )
    format: Literal["csv", "jsonl", "parquet"] | None = Field(
        None, description="classify: format of the result file. The default is csv."
    )
    embeddings: bool | None = Field(
        None, description="classify: include the fc7 vectors, in a jsonl or parquet file. The default is false."
    )
    k: _Count | None = Field(None, description="classify: number of classes of each image. The default is 5.")
    views: _Views | None = Field(None, description="classify: number of crops to average over, 1 or 10.")
    model: str | None = Field(
        None,
        description="classify, head: model to use instead of the active version: NAME:VERSION, or NAME for its newest "
        "version.",
        max_length=80,
    )


class BackupQuery(_Query):
    """Parameters of `POST /v1/backups`."""

    keep: _Count | None = Field(
        None, description="Delete the oldest backups afterwards, so that this many are left. The default is all."
    )


class DeleteDuplicatesQuery(_Query):
    """Parameters of `DELETE /v1/index/duplicates`."""

    threshold: float = Field(ge=0, le=1e6, description="Maximum Euclidean distance between two near-duplicates.")
    where: list[str] = Field([], description=_WHERE)


class DuplicatesQuery(DeleteDuplicatesQuery):
    """Parameters of `GET /v1/index/duplicates`."""

    limit: _Count = Field(100, description=f"Number of groups to return, from 1 to {MAX_COUNT}, largest first.")


class SuggestionsQuery(_Query):
    """Parameters of `GET /v1/images/suggestions`."""

    field: str = Field(
        LABEL_FIELD, max_length=200, description="Metadata field of the labels, such as label or camera.model."
    )
    limit: _Count = Field(20, description=f"Number of images to suggest, from 1 to {MAX_COUNT}.")
    where: list[str] = Field([], description=_WHERE)


class MapQuery(_Query):
    """Parameters of `GET /v1/index/map`."""

    field: str = Field(LABEL_FIELD, max_length=200, description="Metadata field whose values are returned as labels.")
    where: list[str] = Field([], description=_WHERE)
    limit: int = Field(100_000, ge=1, le=1_000_000, description="Maximum number of images of a page.")
    cursor: str | None = Field(None, description="The `next_cursor` of the previous page.")
