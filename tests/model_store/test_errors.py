"""Every error can be pickled, and the header of the module lists it."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from typing import Any

import pytest

from model_store import errors
from model_store.errors import Fc7Error

VALUES: dict[str, Any] = {
    "name": "solar", "expected": "uint8 [n]", "found": "float32 [3]", "package": "torch", "extra": "train",
    "reason": "a reason", "taken": ("JPEG",), "pixels": 9, "limit": 8, "path": Path("/models/solar"), "version": 3,
    "known": ("solar:1",), "model": "solar:1", "use": "the active version", "device": "cuda", "available": ("CPU",),
    "step": 7, "agreement": 0.5, "checkpoint": Path("/runs/x"), "difference": 0.5, "what": "probabilities",
}  # fmt: skip
KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, Fc7Error)]


def made(kind: type[Fc7Error]) -> Fc7Error:
    if not inspect.isfunction(kind.__init__):
        return kind("the text")
    return kind(*(VALUES.get(name, name) for name in inspect.signature(kind).parameters))


@pytest.mark.parametrize("kind", KINDS)
def test_errors_can_be_pickled(kind: type[Fc7Error]) -> None:
    error = made(kind)
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is kind
    assert str(again) == str(error) != ""
    assert vars(again) == vars(error)


def test_header_lists_every_error() -> None:
    assert errors.__doc__
    drawn = {word for word in errors.__doc__.split() if word.endswith("Error")}
    assert drawn == {kind.__name__ for kind in KINDS}
