"""Limits on the cost of decoding one image."""

from __future__ import annotations

from dataclasses import dataclass

from model_store.errors import DecodeMemoryError, DecodeTimeError, ImageTooLargeError
from model_store.decoding.decode_cost import DecodeCost
from model_store.image import DEFAULT_MAX_PIXELS


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
            raise DecodeMemoryError(-(-cost.bytes // 1_000_000), self.bytes // 1_000_000)
        if cost.seconds > self.seconds:
            raise DecodeTimeError(round(cost.seconds, 1), self.seconds)
