"""What decoding an image takes: the result of `model_store.decoding.cost.estimate`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

NS: Final = 1e-9
MAX_STEPS: Final = 5_000
"""Segments, chunks or blocks of a file that are examined. The cost of the rest is extrapolated from these."""

BAND_BYTES: Final = 12_000_000
"""Memory for pictures that are converted in bands of rows before they are resampled."""


@dataclass(frozen=True, slots=True)
class DecodeCost:
    """An estimate from above, for one core of a current server.

    pixels: that the decoder produces, which may be more than the picture has (a large tile). seconds: CPU time. bytes:
    memory, without the file itself. predictable: whether the header bounds time and memory, and a crash of the decoder
    is unlikely.
    """

    pixels: int
    seconds: float
    bytes: int
    predictable: bool = True
