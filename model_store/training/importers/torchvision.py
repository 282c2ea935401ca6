"""Read torchvision's AlexNet, `alexnet-owt-*.pth`: a state dict as a PyTorch file or as safetensors.

Guarantees: only tensors and plain containers are unpickled (`weights_only`). A file that expands when it is unpacked is
rejected. Every weight is found by torchvision's name and its shape is checked.
Out of scope: the net of the 2012 paper. This one is from "One weird trick": one tower, other widths, no normalization.
References: torchvision's models/alexnet.py and AlexNet_Weights.IMAGENET1K_V1 (transforms with mean and deviation).
"""

from __future__ import annotations

import pickle
import re
import struct
import warnings
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model_store.training.errors import ImportFormatError
from model_store.training.importers import imported_net
from model_store.training.importers.file_kind import Kind, expect
from model_store.training.importers.imported_net import OWT_LAYERS, ImportedNet, SourceFile
from model_store.training.nets.alexnet import Architecture, Layer

MEAN: Final = (0.485, 0.456, 0.406)  # RGB, of pixels 0-1
DEVIATION: Final = (0.229, 0.224, 0.225)
_NAMES: Final = (*(f"features.{index}" for index in (0, 3, 6, 8, 10)), *(f"classifier.{index}" for index in (1, 4, 6)))
_WRAPPERS: Final = ("state_dict", "model")  # keys under which training scripts store the weights
_ZIP_OVERHEAD: Final = 1 << 20


def read_torchvision(path: Path, *, layers: tuple[Layer, ...] = OWT_LAYERS) -> ImportedNet:
    """Read a state dict of torchvision's AlexNet with any number of classes. Raises ImportFormatError.

    The scale of the pixels (0-1, divided by the deviations) moves into the first kernels, which then accept 0-255.
    """
    kind = expect(path, Kind.TORCH, Kind.SAFETENSORS)
    source = SourceFile.of("torchvision", path)
    state = _state(path, _load_safetensors(path) if kind is Kind.SAFETENSORS else _load_torch(path))
    last = state.get(f"{_NAMES[-1]}.bias")
    classes = last.shape[0] if last is not None and last.ndim == 1 else 1
    architecture = Architecture(max(classes, 1), layers, dropout="none", name="owt")
    learned = imported_net.learned_layers(architecture)
    file_names = dict(zip(learned, _NAMES, strict=True))
    names = {f"{ours}.{kind}": f"{theirs}.{kind}" for ours, theirs in file_names.items() for kind in ("weight", "bias")}
    if missing := [name for name in names.values() if name not in state]:
        keys = ", ".join(list(state)[:6]) or "nothing"
        more = ", ..." if len(state) > 6 else ""
        raise ImportFormatError(
            path, f"it has no {missing[0]}, so it is not torchvision's AlexNet (it has {keys}{more})"
        )
    if unknown := [name for name in state if name not in names.values()]:
        raise ImportFormatError(path, f"torchvision's AlexNet has no {unknown[0]}, so it is another net")
    weights = imported_net.checked_weights(
        path, architecture, {ours: state[theirs] for ours, theirs in names.items()}, file_names
    )
    first = f"{learned[0]}.weight"
    weights[first] = weights[first] / (255 * torch.tensor(DEVIATION, dtype=torch.float64)[:, None, None])
    weights[first] = weights[first].to(torch.float32)
    mean = [255 * value for value in MEAN]
    red, green, blue = mean
    preprocessing = (
        f"RGB 0-255, minus the mean color ({red:.3f}, {green:.3f}, {blue:.3f}), which is torchvision's mean .485 .456 "
        ".406. The division by 255 and by the deviations .229 .224 .225 is in the first kernels."
    )
    remark = "This is torchvision's net (owt: one tower, no normalization, 61,100,840 parameters), not the paper's."
    return ImportedNet(architecture, weights, imported_net.color_image(mean), preprocessing, source, (remark,))


def _load_torch(path: Path) -> Any:
    _check_unpacked_size(path)
    try:
        # torch's warnings about unusual files are for programmers. The process has one thread, so the filter is safe.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        content = found[1] if found else "an object that torch does not accept as weights"
        raise ImportFormatError(
            path,
            f"it is damaged or contains more than weights ({content}), which is not unpickled. Save only the weights "
            "where the file comes from: torch.save(model.state_dict(), FILE)",
        ) from error
    # A damaged file can fail in torch's reader, in its unpickler or in the containers they build. None is documented.
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise _damaged(path, error) from error


def _check_unpacked_size(path: Path) -> None:
    """Reject a zip whose entries are larger than itself. torch stores entries without compression."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise ImportFormatError(path, "it is truncated: the zip directory at its end is missing")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if not any(name.endswith("data.pkl") for name in names):
        raise ImportFormatError(path, "it is a zip archive that PyTorch did not write")
    if unpacked > path.stat().st_size + _ZIP_OVERHEAD:
        raise ImportFormatError(
            path, f"it unpacks to {unpacked:,} bytes, which is more than its size, so PyTorch did not write it"
        )


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> ImportFormatError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ImportFormatError(path, f"it is truncated or damaged ({reason})")


def _state(path: Path, loaded: Any) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names, unwrapped and without the prefix "module."."""
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ImportFormatError(path, f"it contains a {type(loaded).__name__} instead of weights by name")
    state = {}
    for name, value in loaded.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ImportFormatError(path, f"its entry {str(name)[:60]} is a {type(value).__name__} instead of a tensor")
        state[name.removeprefix("module.")] = value.detach()
    return state
