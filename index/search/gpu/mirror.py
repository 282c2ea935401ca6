"""Copies the vectors of a searcher to a device in the background, and keeps the copies up to date.

Guarantees: searches and writes never wait for a copy of everything, only for a step of it.
Out of scope: which vectors are searched on the device (see rows.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import structlog
from numpy.typing import NDArray

from index.records import DIMENSIONS, DeviceUse
from index.search.gpu.device import SearchDevice
from index.search.gpu.rows import DeviceRows
from index.search.product_code import ProductCode
from index.search.segment import Code, Segment


class DeviceMirror:
    """The copies of one searcher's vectors, and the thread that makes them."""

    def __init__(
        self, device: SearchDevice, segments: Callable[[], Sequence[Segment]], code: Callable[[], Code | None]
    ) -> None:
        """segments, code: return all segments, and the code of `fast`, that the searcher has now."""
        self.device = device
        self.rows = DeviceRows(device, DIMENSIONS, _rows)
        self._segments, self._code = segments, code
        self._codes: tuple[Code, DeviceRows] | None = None
        self._changed, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fc7-device")
        self._changed.set()
        self._thread.start()

    @property
    def use(self) -> DeviceUse:
        """What is on the device now."""
        codes = self._codes
        count, size = (len(codes[1]), codes[1].bytes) if codes is not None else (0, 0)
        return DeviceUse(self.device.name, len(self.rows), count, self.rows.bytes + size)

    def codes(self, code: Code) -> DeviceRows | None:
        """Return the copies of the codes that `code` computed; None if there are none."""
        codes = self._codes
        return codes[1] if codes is not None and codes[0] is code and len(codes[1]) else None

    def update(self) -> None:
        """Copy what is missing, in the background. Called after each change of the searcher."""
        self._changed.set()

    def close(self) -> None:
        """Stop copying, and free the memory on the device."""
        self._stop.set()
        self._changed.set()
        self._thread.join()
        self.rows.close()
        if self._codes is not None:
            self._codes[1].close()

    def _serve(self) -> None:
        log = structlog.get_logger(__name__).bind(device=self.device.name)
        copied = 0
        while self._changed.wait() and not self._stop.is_set():
            self._changed.clear()
            self._copy_codes()  # first, because they are small
            self.rows.copy(self._segments(), self._stop)
            if len(self.rows) >= 2 * copied + 1:
                copied = len(self.rows)
                log.info("vectors copied to the device", vectors=copied, bytes=self.rows.bytes)

    def _copy_codes(self) -> None:
        code = self._code()
        if self._codes is not None and self._codes[0] is not code:
            self._codes[1].close()
            self._codes = None
        if self._codes is None and isinstance(code, ProductCode):
            self._codes = code, DeviceRows(self.device, code.axes.shape[1], partial(_coordinates, code))
        if self._codes is not None:
            self._codes[1].copy(self._segments(), self._stop)


def _coordinates(code: ProductCode, segment: Segment, start: int, end: int) -> NDArray[np.float32]:
    """Return what the code rounds: the coordinates of the rows start:end, float32 [n, 128]."""
    return code.coordinates(segment.rows[start:end])


def _rows(segment: Segment, start: int, end: int) -> NDArray[np.float32]:
    return segment.rows[start:end].astype(np.float32)
