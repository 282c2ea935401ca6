"""Read a pickle, also of Python 2, without creating any object of a class that it names.

Guarantees: numbers, text, lists, dictionaries and NumPy arrays are read. Every other object becomes an `Inert`, which
only stores what the pickle says, so that no code of the file or of a module that it names runs. The memory is bounded
by the size of the file.
Out of scope: what the content means.
References: pickletools.py for the instructions; numpy's `ndarray.__reduce__` for arrays.
"""

from __future__ import annotations

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from model_store.training.errors import ImportFormatError

_MAX_BYTES: Final = 8 << 30  # of an unpacked file
_ENTRY: Final = "data"  # the only entry of a file that was saved with --zip-save
# A damaged pickle can fail in any instruction with any of these.
DAMAGE: Final = (
    pickle.UnpicklingError, EOFError, ValueError, LookupError, TypeError, AttributeError, MemoryError, OverflowError,
    zipfile.BadZipFile,
)  # fmt: skip
_ARRAY_STATE: Final = 4  # shape, dtype, whether the order is Fortran's, and the values


class Inert:
    """An object of a class that was not imported. origin: its module and name. args, state: what would create it."""

    origin: str = ""
    state: Any = None

    def __new__(cls, *args: Any) -> Inert:
        """Store the arguments; nothing is called with them."""
        self = object.__new__(cls)
        self.args, self.items = args, {}
        return self

    args: tuple[Any, ...]
    items: dict[Any, Any]

    def __init__(self, *_: Any) -> None:
        """Do nothing."""

    def __setstate__(self, state: Any) -> None:
        """Store the state."""
        self.state = state

    def __setitem__(self, key: Any, value: Any) -> None:
        """Store an item of an OrderedDict."""
        self.items[key] = value


class InertUnpickler(pickle.Unpickler):
    """Creates only plain values and instances of `Inert`."""

    def find_class(self, module: str, name: str, /) -> Any:
        """Return a class of its own instead of the named one."""
        return type("Inert", (Inert,), {"origin": f"{module}.{name}"})


def read_pickle(path: Path) -> Any:
    """Return the content of a pickle, or of a zip whose entry `data` is one. Raises ImportFormatError."""
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                if _ENTRY not in archive.namelist():
                    raise ImportFormatError(path, "it is a zip archive, but not a checkpoint of cuda-convnet")
                if archive.getinfo(_ENTRY).file_size > _MAX_BYTES:
                    raise ImportFormatError(path, f"it unpacks to more than {_MAX_BYTES:,} bytes")
                with archive.open(_ENTRY) as file:
                    return _load(file)
        with path.open("rb") as file:
            return _load(file)
    except OSError as error:
        raise ImportFormatError(path, error.strerror or str(error)) from error
    except DAMAGE as error:
        raise ImportFormatError(path, f"it is truncated, damaged or not a pickle ({error})") from error


def _load(file: IO[bytes]) -> Any:
    # The bytes of Python 2's arrays become text, one character for each byte.
    return InertUnpickler(file, encoding="latin1").load()


def to_array(path: Path, where: str, value: Any) -> NDArray[np.floating[Any]]:
    """Return a pickled array of floating point numbers. where: names it in the ImportFormatError."""
    try:
        if not isinstance(value, Inert) or not value.origin.endswith("multiarray._reconstruct"):
            raise ValueError(f"it is a {type(value).__name__}")
        shape, kind, fortran, data = value.state[-_ARRAY_STATE:]
        if kind.origin != "numpy.dtype" or kind.args[0] not in ("f4", "f8"):
            raise ValueError("its values are not floating point numbers")
        order = ">" if kind.state[1] == ">" else "<"
        if isinstance(data, Inert) and data.origin == "_codecs.encode":  # how Python 3 writes bytes for Python 2
            data = data.args[0]
        content = data.encode("latin1") if isinstance(data, str) else bytes(data)
        values: NDArray[np.floating[Any]] = np.frombuffer(content, np.dtype(order + kind.args[0]))
        return values.reshape(shape, order="F" if fortran else "C")
    except (ValueError, TypeError, AttributeError, LookupError) as error:
        raise ImportFormatError(path, f"{where} is not an array of numbers ({error})") from error


def to_mapping(value: Any) -> Mapping[Any, Any] | None:
    """Return a pickled dictionary or OrderedDict; None for something else."""
    if isinstance(value, Inert) and value.origin.endswith(".OrderedDict"):
        try:
            return dict(value.args[0] if value.args else ()) | value.items
        except (TypeError, ValueError):
            return None
    return value if isinstance(value, dict) else None
