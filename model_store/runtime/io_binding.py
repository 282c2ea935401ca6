"""Run a session with inputs and outputs at fixed places on its device: one set of buffers for each batch size.

Promises: the answers are those of `session.run`; between two runs of one size nothing is allocated on the device, and
addresses do not change, as CUDA graphs need it; where ONNX Runtime offers pinned memory for the device, pixels go
through it. On the CPU provider the same code runs with buffers in ordinary memory.
Does not: choose a provider; take calls from several threads (the runner holds a lock).
Source: ONNX Runtime's documentation of IOBinding, of the CUDA execution provider and of CUDA graphs.
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
    pinned: Any  # None: there is no pinned memory to be had
    pixels: Any
    outputs: tuple[Any, ...]


class BoundSession:
    """A session with its buffers. `device`: "cpu" or "cuda"; `graphs`: number CUDA graphs by batch size."""

    def __init__(self, ort: Any, session: Any, device: str, device_id: int, *, graphs: bool = False) -> None:
        self._ort, self._session, self._device, self._device_id, self._graphs = ort, session, device, device_id, graphs
        self._sizes: dict[int, _Buffers] = {}

    def run(self, pixels: NDArray[np.uint8]) -> list[NDArray[np.float32]]:
        """Return probabilities and fc7 of uint8 [n,224,224,3], C-contiguous; the arrays are the caller's."""
        buffers = self._sizes.get(len(pixels)) or self._allocate(pixels.shape)
        if buffers.pinned is None:
            buffers.pixels.update_inplace(pixels)
        else:
            buffers.pinned.update_inplace(pixels)
            buffers.pixels.update_inplace(buffers.pinned)
        self._session.run_with_iobinding(buffers.binding, self._options(len(pixels)))
        # On the CPU `numpy` is a view of the buffer, which the next run writes to.
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
        """Return host memory that the device reads directly, where ONNX Runtime knows of some."""
        if self._device == "cpu":
            return None
        for device in self._ort.get_ep_devices():
            if device.ep_name == "CUDAExecutionProvider":
                memory = device.memory_info(self._ort.OrtDeviceMemoryType.HOST_ACCESSIBLE)
                if memory is not None:
                    return self._ort.OrtValue.ortvalue_from_shape_and_type(shape, np.uint8, memory_info=memory)
        return None

    def _options(self, rows: int) -> Any:
        """Name the captured graph by its batch size: a graph is of one shape."""
        if not self._graphs:
            return None
        options = self._ort.RunOptions()
        options.add_run_config_entry("gpu_graph_id", str(rows))
        return options
