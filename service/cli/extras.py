"""The optional parts of the installation: a command that wants one says which, where it is missing."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from model_store.errors import MissingExtraError

_TRAINING: Final = frozenset({"torch", "onnx", "matplotlib", "safetensors", "scipy", "tensorboard"})


@contextmanager
def training_extra() -> Iterator[None]:
    """Turn a missing package of the extra `train` into its error; any other missing module is our mistake."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAINING:
            raise
        raise MissingExtraError(package, "train") from error
