"""Optional dependencies: a command that needs a missing package says how to install it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

from model_store.errors import MissingExtraError

_TRAINING: Final = frozenset({"torch", "onnx", "matplotlib", "safetensors", "scipy", "tensorboard"})


@contextmanager
def training_extra() -> Iterator[None]:
    """Raise MissingExtraError if an import in the block fails for a package of the extra `train`."""
    try:
        yield
    except ModuleNotFoundError as error:
        package = (error.name or "").partition(".")[0]
        if package not in _TRAINING:
            raise
        raise MissingExtraError(package, "train") from error
