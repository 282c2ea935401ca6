"""Labels of images: the value of one metadata field, such as `label`, and the stored vectors that belong to it.

Guarantees: labels have the form of class folders: Unicode's form NFC, without spaces at the ends. Numbers and booleans
become their JSON text.
Out of scope: lists of several labels; such an image has no label that a classifier could use.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.image_files import label_of as label_of_name

LABEL_FIELD: Final = "label"
VOTERS: Final = 10  # neighbors that vote on a label, by default


@dataclass(frozen=True, slots=True)
class LabelledVectors:
    """Some indexed images with the values of a metadata field.

    keys, values: of the images with a vector; a value is as in the metadata, and None if the image has none. vectors:
    float16 [n, 4096], of the same images. missing: the values of the images without a vector of the model.
    """

    keys: list[str]
    values: list[Any]
    vectors: NDArray[np.float16]
    missing: list[Any]


def value_at(metadata: Mapping[str, Any], path: Sequence[str]) -> Any:
    """Return the value at a path of names in nested objects, or None."""
    value: Any = metadata
    for name in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(name)
    return value


def label_of(value: object) -> str | None:
    """Return the label that a metadata value stands for, or None if it cannot be a label.

    A text, a number, a boolean, or a list of exactly one of them can be one.
    """
    if isinstance(value, list):
        return label_of(value[0]) if len(value) == 1 and not isinstance(value[0], list) else None
    if isinstance(value, str):
        return label_of_name(value.strip()) or None
    if isinstance(value, float) and math.isfinite(value) and value.is_integer():
        value = int(value)  # JSON does not distinguish 3.0 from 3
    return json.dumps(value) if isinstance(value, bool | int | float) else None
