"""Every error can be pickled, and the header of its module lists it."""

from __future__ import annotations

import inspect
import pickle
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from model_store import errors
from model_store.errors import Fc7Error, TrainingError
from model_store.runtime.errors import NotExplainableError
from model_store.training import errors as training_errors

VALUES: dict[str, Any] = {
    "name": "solar", "expected": "uint8 [n]", "found": "float32 [3]", "package": "torch", "extra": "train",
    "reason": "a reason", "taken": ("JPEG",), "pixels": 9, "limit": 8, "path": Path("/models/solar"), "version": 3,
    "known": ("solar:1",), "model": "solar:1", "use": "the active version", "device": "cuda", "available": ("CPU",),
    "seconds": 3.5, "megabytes": 300, "retry_after": 2, "needed": 9, "left": 8, "batch_size": 4, "rate": 0.1,
    "step": 7, "agreement": 0.5, "checkpoint": Path("/runs/x"), "difference": 0.5, "what": "probabilities",
}  # fmt: skip


def kinds_of(module: ModuleType) -> list[type[Fc7Error]]:
    return [kind for kind in vars(module).values() if isinstance(kind, type) and issubclass(kind, Fc7Error)]


KINDS = [
    *kinds_of(errors),
    NotExplainableError,
    *(kind for kind in kinds_of(training_errors) if kind is not TrainingError),
]


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
    assert repr(again) == repr(error)


@pytest.mark.parametrize("module", [errors, training_errors])
def test_header_lists_every_error(module: ModuleType) -> None:
    assert module.__doc__
    drawn = {word for word in module.__doc__.split() if word.endswith("Error")}
    assert drawn == {kind.__name__ for kind in kinds_of(module)}
