"""Read torchvision's AlexNet, `alexnet-owt-*.pth`: a state dict, as a PyTorch file or as safetensors.

Promises: nothing is unpickled but tensors and plain containers (`weights_only`); a file that unpacks to more than it
holds is refused; every weight is found by torchvision's name and checked by its shape.
Does not: call it the paper's net. It is that of "One weird trick": one tower, other widths, no normalisation.
Source: torchvision's models/alexnet.py and its AlexNet_Weights.IMAGENET1K_V1 (transforms and their mean and deviation).
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

from model_store.errors import ImportFormatError
from model_store.training.importers.file_kind import Kind, expect
from model_store.training.importers.imported_net import (
    OWT_LAYERS,
    ImportedNet,
    Source,
    checked,
    colour_image,
    learned,
    shapes_of,
)
from model_store.training.nets.alexnet import Architecture, Layer

MEAN: Final = (0.485, 0.456, 0.406)  # RGB, of pixels 0-1
DEVIATION: Final = (0.229, 0.224, 0.225)
_NAMES: Final = (
    "features.0",
    "features.3",
    "features.6",
    "features.8",
    "features.10",
    "classifier.1",
    "classifier.4",
    "classifier.6",
)
_WRAPPERS: Final = ("state_dict", "model")  # what training scripts, torchvision's own too, put the weights under
_SLACK: Final = 1 << 20


def read_torchvision(path: Path, *, layers: tuple[Layer, ...] = OWT_LAYERS) -> ImportedNet:
    """Read a state dict of torchvision's AlexNet, whatever its number of classes. Raises ImportFormatError.

    The scale of its pixels (0-1, over the deviations) moves into the first kernels, so that they take 0-255.
    """
    kind = expect(path, Kind.TORCH, Kind.SAFETENSORS)
    source = Source.of("torchvision", path)
    state = _state(path, _load_safetensors(path) if kind is Kind.SAFETENSORS else _load_torch(path))
    last = state.get(f"{_NAMES[-1]}.bias")
    classes = last.shape[0] if last is not None and last.ndim == 1 else 1
    architecture = Architecture(max(classes, 1), layers, dropout="none", name="owt")
    called = dict(zip(learned(architecture), _NAMES, strict=True))
    names = {
        name: f"{called[layer]}.{which}"
        for name in shapes_of(architecture)
        for layer, _, which in [name.partition(".")]
    }
    if missing := [theirs for theirs in names.values() if theirs not in state]:
        raise ImportFormatError(path, f"it has no {missing[0]}: it is no torchvision AlexNet ({_listed(state)})")
    if unknown := [name for name in state if name not in names.values()]:
        raise ImportFormatError(path, f"torchvision's AlexNet has no {unknown[0]}: it is another net")
    weights = checked(path, architecture, {ours: state[theirs] for ours, theirs in names.items()}, called)
    first = f"{learned(architecture)[0]}.weight"
    weights[first] = weights[first] / (255 * torch.tensor(DEVIATION, dtype=torch.float64)[:, None, None])
    weights[first] = weights[first].to(torch.float32)
    red, green, blue = (255 * value for value in MEAN)
    preprocessing = (
        f"RGB 0-255, minus the mean colour ({red:.3f}, {green:.3f}, {blue:.3f}), which is torchvision's mean .485 .456 "
        ".406; its division by 255 and by the deviations .229 .224 .225 is in the first kernels"
    )
    remark = "this is torchvision's net (owt: one tower, no normalisation, 61,100,840 parameters), not the paper's"
    return ImportedNet(architecture, weights, colour_image((red, green, blue)), preprocessing, source, (remark,))


def _load_torch(path: Path) -> Any:
    _check_unpacked_size(path)
    try:
        # Its remarks on odd files are for programmers. One command, one thread: the filter is nobody else's.
        with warnings.catch_warnings(action="ignore"):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as exc:
        found = re.search(r"GLOBAL ([\w.]+)", str(exc))
        what = f"{found[1]}" if found else "something that torch does not call weights"
        raise ImportFormatError(
            path,
            f"it is broken, or holds more than weights ({what}), which is not unpickled. Save the weights alone where "
            "the file comes from: torch.save(model.state_dict(), FILE)",
        ) from exc
    # Broken files fail in torch's reader, its unpickler or the containers they build: it documents none of these.
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError) as exc:
        raise ImportFormatError(path, f"it is cut short or broken ({_first_line(exc)})") from exc
    except struct.error as exc:
        raise ImportFormatError(path, f"it is cut short or broken ({exc})") from exc


def _check_unpacked_size(path: Path) -> None:
    """Refuse a zip whose entries are larger than itself: torch stores them, so it would be no file of torch's."""
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise ImportFormatError(path, "it is cut short: its table of contents, at the end, is missing")
        return
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as exc:
        raise ImportFormatError(path, f"it is cut short or broken ({exc})") from exc
    if not any(name.endswith("data.pkl") for name in names):
        raise ImportFormatError(path, "it is a zip archive, but not one that PyTorch wrote")
    if unpacked > path.stat().st_size + _SLACK:
        raise ImportFormatError(path, f"it unpacks to {unpacked:,} bytes, more than it has: it is not PyTorch's work")


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as exc:
        raise ImportFormatError(path, f"it is cut short or broken ({_first_line(exc)})") from exc


def _state(path: Path, loaded: Any) -> dict[str, Tensor]:
    """Return the tensors by torchvision's names: out of a training script's wrapper, and without "module."."""
    for key in _WRAPPERS:
        if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping):
            loaded = loaded[key]
    if not isinstance(loaded, Mapping):
        raise ImportFormatError(path, f"it holds a {type(loaded).__name__}, not weights by name")
    state = {}
    for name, value in loaded.items():
        if not isinstance(value, Tensor) or not isinstance(name, str):
            raise ImportFormatError(path, f"its entry {str(name)[:60]} is a {type(value).__name__}, not a tensor")
        state[name.removeprefix("module.")] = value.detach()
    return state


def _listed(state: Mapping[str, Tensor]) -> str:
    return "it has " + (", ".join(list(state)[:6]) or "nothing") + (", ..." if len(state) > 6 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
