"""Run a session with IO binding: fixed input and output buffers on the device, one set for each batch size.

Guarantees: the results equal those of `session.run`. Repeated runs of one batch size allocate nothing on the device and
use the same addresses, as CUDA graphs require. Pixels are copied through pinned memory where ONNX Runtime offers it. On
the CPU provider the same code uses ordinary memory.
Out of scope: choosing a provider; concurrent calls (the runner holds a lock).
References: ONNX Runtime's documentation of IOBinding, the CUDA execution provider and CUDA graphs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_OUTPUTS = ("probabilities", "fc7")


@dataclass(frozen=True, slots=True)
class _Buffers:
    binding: Any
    pinned: Any  # None if pinned memory is not available
    pixels: Any
    outputs: tuple[Any, ...]


class BoundSession:
    """A session with its buffers. device: "cpu" or "cuda". graphs: use one CUDA graph for each batch size."""

    def __init__(self, ort: Any, session: Any, device: str, device_id: int, *, graphs: bool = False) -> None:
        self._ort, self._session, self._device, self._device_id, self._graphs = ort, session, device, device_id, graphs
        self._sizes: dict[int, _Buffers] = {}

    def run(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return probabilities and fc7 of uint8 [n,224,224,3], C-contiguous, as new arrays."""
        buffers = self._sizes.get(len(pixels)) or self._allocate(pixels.shape)
        if buffers.pinned is None:
            buffers.pixels.update_inplace(pixels)
        else:
            buffers.pinned.update_inplace(pixels)
            buffers.pixels.update_inplace(buffers.pinned)
        self._session.run_with_iobinding(buffers.binding, self._options(len(pixels)))
        # On the CPU, `numpy` returns a view of the buffer, which the next run overwrites.
        return [np.array(output.numpy()) for output in buffers.outputs]

    def _allocate(self, shape: tuple[int, ...]) -> _Buffers:
        rows = shape[0]
        pixels = self._value(shape, np.uint8)
        columns = {node.name: node.shape[1] for node in self._session.get_outputs()}
        outputs = tuple(self._value((rows, columns[name]), np.float32) for name in _OUTPUTS)
        binding = self._session.io_binding()
        binding.bind_ortvalue_input("pixels", pixels)
        for name, output in zip(_OUTPUTS, outputs, strict=True):
            binding.bind_ortvalue_output(name, output)
        self._sizes[rows] = _Buffers(binding, self._pinned(shape), pixels, outputs)
        return self._sizes[rows]

    def _value(self, shape: tuple[int, ...], kind: type[np.generic]) -> Any:
        return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, kind, self._device, self._device_id)

    def _pinned(self, shape: tuple[int, ...]) -> Any:
        """Return pinned host memory, or None if ONNX Runtime offers none."""
        if self._device == "cpu":
            return None
        for device in self._ort.get_ep_devices():
            if device.ep_name == "CUDAExecutionProvider":
                memory = device.memory_info(self._ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
                if memory is not None:
                    return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, memory_info=memory)
        return None

    def _options(self, rows: int) -> Any:
        """Identify the captured CUDA graph by its batch size, because a graph has a fixed shape."""
        if not self._graphs:
            return None
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(rows))
        return options
