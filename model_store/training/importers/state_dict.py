"""Find a net's weights in a PyTorch or safetensors file, however its training script wrapped and named them.

Guarantees: no code of the file runs. Only tensors and plain containers are unpickled (`weights_only`). The weights
beside or inside of other objects, as in a whole model or TorchScript, are read without creating the objects
(`inert_torch`). A file that expands when it is unpacked is rejected. If the weights cannot be read, the error has the
command that saves them.
Out of scope: running TorchScript or exported programs; sharded checkpoints.
References: PyTorch's "Saving and loading models"; the names that torch.nn.DataParallel ("module."), torch.compile
("_orig_mod.") and Lightning ("state_dict" with the attribute's name before each weight) add.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import pickle
import pickletools
import re
import shlex
import struct
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from model_store.training.errors import ImportFormatError
from model_store.training.importers.file_kind import Kind, expect
from model_store.training.importers.inert_torch import read_inert

_ZIP_OVERHEAD: Final = 1 << 20
_SCRIPT: Final = "/constants.pkl"  # an entry that only TorchScript has
_MOST_NESTED: Final = 4  # mappings inside mappings
# Names that wrappers put into the path of a weight, wherever the wrapped module is.
_WRAPPERS: Final = frozenset({"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module"})
_AVERAGES: Final = re.compile(r"(^|[._])(ema|swa|avg|averaged|shadow)([._]|$)", re.IGNORECASE)
# What training scripts store beside the weights, and what is safe to create: plain values without code of their own.
_PLAIN: Final[tuple[Callable[..., Any] | tuple[Callable[..., Any], str], ...]] = (
    argparse.Namespace,
    pathlib.PosixPath,
    np.dtype,
    np.ndarray,
    *(type(np.dtype(kind)) for kind in "?bhilqBHILQefd"),
    *(
        (cast(Callable[..., Any], value.__reduce__()[0]), f"numpy.{core}.multiarray.{name}")
        for core in ("core", "_core")
        for name, value in (("scalar", np.float64(0)), ("_reconstruct", np.zeros(1)))
    ),
)


@dataclass(frozen=True, slots=True)
class StateDict:
    """The weights of one net by their names without prefixes.

    place: where they are in the file, such as "state_dict, model.*"; "" if they are its only content. others: the
    places of other copies with the same names. outside: names of tensors beside the net, which are not part of it.
    """

    tensors: Mapping[str, Tensor]
    place: str = ""
    others: tuple[str, ...] = ()
    outside: tuple[str, ...] = ()


def read_state_dict(path: Path, first: str) -> StateDict:
    """Return the weights of the net that has a weight named `first`, such as "features.0.weight".

    Moving averages are used only if there is no other copy. If no name ends with `first`, all tensors are returned as
    they are named. Raises ImportFormatError.
    """
    kind = expect(path, Kind.TORCH, Kind.SAFETENSORS)
    loaded = _load_safetensors(path) if kind is Kind.SAFETENSORS else _load_torch(path)
    if not isinstance(loaded, Mapping):
        raise ImportFormatError(path, f"it contains a {type(loaded).__name__} instead of weights by name")
    mappings = list(_mappings("", loaded))
    found = [state for place, tensors in mappings for state in _nets(place, tensors, first)]
    if found:
        best = min(found, key=lambda state: bool(_AVERAGES.search(state.place)))
        return StateDict(
            best.tensors, best.place, tuple(state.place for state in found if state is not best), best.outside
        )
    if not mappings:
        keys = ", ".join(str(key)[:60] for key in list(loaded)[:6]) or "nothing"
        raise ImportFormatError(path, f"it contains no weights by name (it has {keys})")
    return StateDict(max((tensors for _, tensors in mappings), key=len))


def _mappings(place: str, content: Mapping[Any, Any], depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Yield (place, tensors by name) of each mapping in `content` that has tensors, outermost first."""
    tensors = {
        ".".join(part for part in name.split(".") if part not in _WRAPPERS): value.detach()
        for name, value in content.items()
        if isinstance(name, str) and isinstance(value, Tensor) and value.ndim  # single numbers are counters
    }
    if tensors:
        yield place, tensors
    if depth < _MOST_NESTED:
        for name, value in content.items():
            if isinstance(name, str) and isinstance(value, Mapping):
                yield from _mappings(f"{place}.{name}" if place else name, value, depth + 1)


def _nets(place: str, tensors: Mapping[str, Tensor], first: str) -> Iterator[StateDict]:
    """Yield each net in a mapping: the tensors whose names have the prefix that a name ending with `first` has."""
    for anchor in tensors:
        if anchor != first and not anchor.endswith(f".{first}"):
            continue
        prefix = anchor.removesuffix(first)
        own = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        outside = tuple(name for name in tensors if not name.startswith(prefix))
        yield StateDict(own, ", ".join(part for part in (place, f"{prefix}*" if prefix else "") if part), (), outside)


def _load_torch(path: Path) -> Any:
    names = _zip_names(path)
    if any(name.endswith(_SCRIPT) for name in names) and (weights := read_inert(path)) is not None:
        return weights
    _reject_programs(path, names)
    try:
        # torch's warnings about unusual files are for programmers. The process has one thread, so the filter is safe.
        with warnings.catch_warnings(action="ignore"), torch.serialization.safe_globals(list(_PLAIN)):
            return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        if (weights := read_inert(path)) is not None:
            return weights
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        content = found[1] if found else "an object that torch does not accept as weights"
        raise ImportFormatError(
            path,
            f"it is damaged or contains more than weights ({content}), which is not unpickled. {_advice(path)}",
        ) from error
    # A damaged file can fail in torch's reader, in its unpickler or in the containers they build. None is documented.
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise _damaged(path, error) from error


def _advice(path: Path) -> str:
    """Return how to save only the weights of a file that contains other objects."""
    load = f'torch.load({json.dumps(str(path))}, map_location="cpu", weights_only=False)'
    weights = f"{load}.state_dict()"
    if not _is_module(path):
        weights = f'{{k: v for k, v in {load}.items() if k in ("state_dict", "model_state_dict", "model")}}'
    return (
        "Save only the weights, where its code is installed and if you trust the file, and import the result: "
        f"{_python(weights)}"
    )


def _python(weights: str) -> str:
    return "python -c " + shlex.quote(f'import torch; torch.save({weights}, "weights.pth")')


def _is_module(path: Path) -> bool:
    """Return whether the first object in a pickle is an instance of a class, as for a whole model, and no dictionary.

    The pickle is only scanned.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                name = next(name for name in archive.namelist() if name.endswith("data.pkl"))
                pickled = archive.read(name)
        else:
            with path.open("rb") as file:
                for _ in range(3):  # the older format starts with its number, its version and the system
                    list(pickletools.genops(file))
                pickled = file.read(1 << 20)
        for opcode, argument, _ in pickletools.genops(pickled):
            if opcode.name in ("EMPTY_DICT", "DICT", "GLOBAL", "STACK_GLOBAL"):
                return opcode.name.endswith("GLOBAL") and "OrderedDict" not in str(argument)
    except (ValueError, OSError, StopIteration, zipfile.BadZipFile):
        return False
    return False


def _zip_names(path: Path) -> list[str]:
    """Return the names of the entries of a zip; none for another file. torch stores entries without compression.

    Raises ImportFormatError if the zip is truncated or its entries are larger than itself.
    """
    if not zipfile.is_zipfile(path):
        with path.open("rb") as file:
            if file.read(2) == b"PK":
                raise ImportFormatError(path, "it is truncated: the zip directory at its end is missing")
        return []
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError) as error:
        raise _damaged(path, error) from error
    if unpacked > path.stat().st_size + _ZIP_OVERHEAD:
        raise ImportFormatError(
            path, f"it unpacks to {unpacked:,} bytes, which is more than its size, so PyTorch did not write it"
        )
    return names


def _reject_programs(path: Path, names: Sequence[str]) -> None:
    """Reject programs, and a zip that PyTorch did not write."""
    for program, entry, load in (
        ("a TorchScript program", _SCRIPT, 'torch.jit.load({}, map_location="cpu").state_dict()'),
        ("a program of torch.export", "archive_format", "torch.export.load({}).state_dict"),
    ):
        if any(name.endswith(entry) for name in names):
            raise ImportFormatError(
                path,
                f"it is {program}, which is not run. If you trust the file, save its weights and import the result: "
                f"{_python(load.format(json.dumps(str(path))))}",
            )
    if names and not any(name.endswith("data.pkl") for name in names):
        raise ImportFormatError(path, "it is a zip archive that PyTorch did not write")


def _load_safetensors(path: Path) -> Any:
    try:
        return load_file(path)
    except (SafetensorError, OSError, ValueError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: BaseException) -> ImportFormatError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return ImportFormatError(path, f"it is truncated or damaged ({reason})")
