"""The map of the index."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from pydantic import BaseModel, Field

from index.projection.index_map import Method
from index.projection.maps import MapPage
from service.api.schemas.answers import ModelName

_PIECE: Final = 20_000  # values encoded without a pause for other threads
_DIGITS: Final = 4  # of a coordinate


class MapAnswer(BaseModel):
    """Positions of images in columns: the image number n has the key `keys[n]` and is at `x[n]`, `y[n]`."""

    model: ModelName
    method: Method = Field(
        description="pca: the two directions of largest variance. tsne: computed by a job of the kind map."
    )
    created: datetime
    field: str
    images: int = Field(description="Number of images that match, on all pages.")
    missing: int = Field(
        description="Number of images of this page that were not placed in time; repeat the request to place them."
    )
    next_cursor: str | None
    labels: list[str] = Field(description="The different labels of this page.")
    keys: list[str]
    x: list[float] = Field(description="From about -1 to 1.")
    y: list[float]
    label: list[int | None] = Field(description="For each image, the position of its label in `labels`, or null.")


def encode_map(page: MapPage, field: str, next_cursor: str | None) -> bytes:
    """Return a MapAnswer as JSON. It is encoded in pieces, because one call would stop all threads for too long."""
    labels = list(dict.fromkeys(label for label in page.labels if label is not None))
    numbers = {label: number for number, label in enumerate(labels)}
    head = {
        "model": ModelName.of_reference(page.model).model_dump(),
        "method": page.method,
        "created": datetime.fromtimestamp(page.created, UTC).isoformat(timespec="seconds"),
        "field": field,
        "images": page.images,
        "missing": page.missing,
        "next_cursor": next_cursor,
    }
    columns: dict[str, Sequence[Any]] = {
        "labels": labels,
        "keys": page.keys,
        "x": [round(value, _DIGITS) for value in page.positions[:, 0].tolist()],
        "y": [round(value, _DIGITS) for value in page.positions[:, 1].tolist()],
        "label": [None if label is None else numbers[label] for label in page.labels],
    }
    text = json.dumps(head, ensure_ascii=False)[:-1]
    for name, values in columns.items():
        text += f', "{name}": [{", ".join(_pieces(values))}]'
    return f"{text}}}".encode("utf-8", "surrogatepass")


def _pieces(values: Sequence[Any]) -> Iterator[str]:
    for start in range(0, len(values), _PIECE):
        yield json.dumps(values[start : start + _PIECE], ensure_ascii=False, separators=(",", ":"))[1:-1]
