"""Limits on the cost of decoding one image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from model_store.decoding.decode_cost import DecodeCost
from model_store.errors import DecodeMemoryError, DecodeTimeError, ImageError, ImageTooLargeError
from model_store.image import DEFAULT_MAX_PIXELS, PreparedImage, inspect_and_prepare

_MB: Final = 1_000_000


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """pixels: of the image or of one tile. bytes: memory. seconds: CPU time."""

    pixels: int = DEFAULT_MAX_PIXELS
    bytes: int = 200_000_000
    seconds: float = 3.0

    def check(self, cost: DecodeCost) -> None:
        """Raise ImageTooLargeError, DecodeMemoryError or DecodeTimeError if the cost is over a limit."""
        if cost.pixels > self.pixels:
            raise ImageTooLargeError(cost.pixels, self.pixels)
        if cost.bytes > self.bytes:
            raise DecodeMemoryError(-(-cost.bytes // _MB), self.bytes // _MB)
        if cost.seconds > self.seconds:
            raise DecodeTimeError(round(cost.seconds, 1), self.seconds)


def prepare_within(limits: DecodeLimits, data: bytes) -> PreparedImage:
    """Decode and prepare an image file in this thread. Raises ImageError; DecodeMemoryError if memory is short."""
    try:
        return inspect_and_prepare(data, max_pixels=limits.pixels)
    except (ImageError, MemoryError) as error:
        if isinstance(error, MemoryError) or isinstance(error.__cause__, MemoryError):
            raise DecodeMemoryError(limits.bytes // _MB, limits.bytes // _MB) from error
        raise
