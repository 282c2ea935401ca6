"""Copies the vectors of a searcher to a device in the background, and keeps the copies up to date.

Guarantees: searches and writes never wait for a copy of everything, only for a step of it.
Out of scope: which vectors are searched on the device (see rows.py).
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import structlog
from numpy.typing import NDArray

from index.records import DIMENSIONS, DeviceUse
from index.search.gpu.device import SearchDevice
from index.search.gpu.rows import DeviceRows
from index.search.segment import Segment


class DeviceMirror:
    """The copies of one searcher's vectors, and the thread that makes them."""

    def __init__(self, device: SearchDevice, segments: Callable[[], Sequence[Segment]]) -> None:
        """segments: returns all segments that the searcher has now."""
        self.device = device
        self.rows = DeviceRows(device, DIMENSIONS, _rows)
        self._segments = segments
        self._changed, self._stop = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._serve, name="fc7-device")
        self._changed.set()
        self._thread.start()

    @property
    def use(self) -> DeviceUse:
        """What is on the device now."""
        return DeviceUse(self.device.name, len(self.rows), self.rows.bytes)

    def update(self) -> None:
        """Copy what is missing, in the background. Called after each change of the searcher."""
        self._changed.set()

    def close(self) -> None:
        """Stop copying, and free the memory on the device."""
        self._stop.set()
        self._changed.set()
        self._thread.join()
        self.rows.close()

    def _serve(self) -> None:
        log = structlog.get_logger(__name__).bind(device=self.device.name)
        copied = 0
        while self._changed.wait() and not self._stop.is_set():
            self._changed.clear()
            self.rows.copy(self._segments(), self._stop)
            if len(self.rows) >= 2 * copied + 1:
                copied = len(self.rows)
                log.info("vectors copied to the device", vectors=copied, bytes=self.rows.bytes)


def _rows(segment: Segment, start: int, end: int) -> NDArray[np.float32]:
    return segment.rows[start:end].astype(np.float32)
