"""The indexed images without their vectors: what is needed to choose some of them, or to draw all of them.

Out of scope: reading them from an index (`ImageIndex.points`).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Points:
    """Some indexed images that have a vector of the searched model.

    hashes: the SHA-256 of their bytes, which changes if an image is replaced. values: of one metadata field, as in the
    metadata; None for an image without the field.
    """

    keys: list[str]
    hashes: list[str]
    values: list[Any]
