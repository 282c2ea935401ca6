"""Read the weights in a file of PyTorch that also has other objects: whole models, TorchScript, options of scripts.

Guarantees: no object is created and no code of the file runs, see `inert_pickle`. A tensor outside of its storage is
rejected.
Out of scope: PyTorch's older format without a zip; torch.export; what the program in the file computes.
References: torch.save and torch.jit.save: `data.pkl`, whose tensors name storages in the folder `data`.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from model_store.training.importers.inert_pickle import DAMAGE, Inert, InertUnpickler, to_mapping

_DTYPES: Final = {
    "torch.FloatStorage": torch.float32,
    "torch.DoubleStorage": torch.float64,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
}
_PARTS: Final = ("_parameters", "_buffers", "_modules")  # where a module of torch has its weights
_MOST_NESTED: Final = 12  # modules in modules


def read_inert(path: Path) -> Mapping[str, Any] | None:
    """Return the tensors in a file as nested mappings; a module is one mapping, with the names of its state_dict.

    None if it is not a zip of PyTorch with tensors, or damaged.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
            content = _Reader(archive, name.removesuffix("data.pkl")).load(archive.read(name))
            found = content if isinstance(content, dict) else {"": content}
            # A module at the top has no name.
            return found.get("", found) if isinstance(found.get("", found), dict) else None
    except (*DAMAGE, OSError, StopIteration, RuntimeError):
        return None


class _Storage:
    def __init__(self, kind: str, key: str) -> None:
        self.kind, self.key = kind, key


class _Reader:
    """Reads one file. Storages are read when a tensor needs them."""

    def __init__(self, archive: zipfile.ZipFile, prefix: str) -> None:
        self._archive, self._prefix = archive, prefix

    def load(self, pickled: bytes) -> Any:
        """Return the content as tensors and mappings; None for everything else."""
        unpickler = _Unpickler(io.BytesIO(pickled))
        return self._plain(unpickler.load(), 0)

    def _plain(self, value: Any, depth: int) -> Any:
        if depth > _MOST_NESTED:
            return None
        if (tensor := self._tensor(value)) is not None:
            return tensor
        mapping = to_mapping(value)
        if mapping is not None:
            return {
                str(key): plain
                for key, entry in mapping.items()
                if (plain := self._plain(entry, depth + 1)) is not None
            }
        if isinstance(value, Inert) and isinstance(value.state, dict):
            return dict(self._module(value.state, "", depth))
        return None

    def _module(self, state: Mapping[Any, Any], prefix: str, depth: int) -> list[tuple[str, Tensor]]:
        """Return the names and tensors of a module, and of those in it."""
        found: list[tuple[str, Tensor]] = []
        if depth > _MOST_NESTED:
            return found
        parts = [to_mapping(state[part]) or {} for part in _PARTS if part in state]
        for attributes in parts or [state]:  # in TorchScript, the attributes themselves
            for name, value in attributes.items():
                if (tensor := self._tensor(value)) is not None:
                    found.append((f"{prefix}{name}", tensor))
                elif isinstance(value, Inert) and isinstance(value.state, dict):
                    found += self._module(value.state, f"{prefix}{name}.", depth + 1)
        return found

    def _tensor(self, value: Any) -> Tensor | None:
        if isinstance(value, Inert) and value.origin == "torch._utils._rebuild_parameter":
            value = value.args[0]
        if not isinstance(value, Inert) or value.origin != "torch._utils._rebuild_tensor_v2":
            return None
        storage, offset, size, stride = value.args[:4]
        dtype = _DTYPES.get(storage.kind)
        if dtype is None:
            return None  # a counter
        data = torch.frombuffer(bytearray(self._archive.read(f"{self._prefix}data/{storage.key}")), dtype=dtype)
        # as_strided rejects a tensor outside of the storage.
        return torch.as_strided(data, size, stride, offset).clone()


class _Unpickler(InertUnpickler):
    def persistent_load(self, pid: Any) -> _Storage:
        _, kind, key, *_ = pid
        return _Storage(kind.origin, str(key))
