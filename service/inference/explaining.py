"""Explanations of a loaded version: its graph, loaded at the first use, and the class or neighbor to explain.

Guarantees: the graph is loaded only once, by one thread, and only if enough memory is available.
Out of scope: the queue (see `batcher`), drawing (see `heat_map`).
"""

from __future__ import annotations

import difflib
import threading
from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.memory import available, return_freed_memory
from model_store.runtime.explainer import Explainer, require_explainable
from model_store.runtime.runner import Runner
from service.inference.errors import ClassNotFoundError, ExplanationMemoryError
from service.inference.memory import needed_to_explain

_SIMILAR: Final = 3
_LONGEST_NAME: Final = 200  # of a class that does not exist; longer ones are not compared with the others
# Stored vectors are float16, which rounds by up to 0.05 %: below this share of a vector's length, the difference of two
# vectors is rounding.
_SAME: Final = 1e-3


class LazyExplainer:
    """The graph for explanations of a version, which is loaded at the first use. Thread-safe."""

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._lock = threading.Lock()
        self.loaded: Explainer | None = None

    def load(self) -> Explainer:
        """Return the explainer, after loading it if necessary.

        Raises NotExplainableError, ExplanationMemoryError, and the errors of loading.
        """
        with self._lock:
            if self.loaded is None:
                artifact = self._runner.artifact
                require_explainable(artifact)
                memory, needed = available(), needed_to_explain(artifact)
                if memory is not None and memory < needed:
                    raise ExplanationMemoryError(artifact.id, needed, memory)
                device = "cpu" if self._runner.device == "cpu" else self._runner.options.device
                self.loaded = Explainer(artifact, replace(self._runner.options, device=device))
                return_freed_memory()
            return self.loaded

    def close(self) -> None:
        """Free the memory. Runs in progress finish."""
        with self._lock:
            self.loaded = None


def find_class(labels: Sequence[str], name: str, model: str) -> int:
    """Return the index of the class `name`, which is a label or, if no label is equal to it, an index as text.

    model: for the message. Raises ClassNotFoundError.
    """
    if name in labels:
        return labels.index(name)
    if name.isascii() and name.isdigit() and len(name) < 10 and int(name) < len(labels):
        return int(name)
    similar: Sequence[str] = []
    if len(name) <= _LONGEST_NAME:
        spelled = {label.casefold(): label for label in labels}
        matches = difflib.get_close_matches(name.casefold(), spelled, n=_SIMILAR, cutoff=0.5)
        parts = [label for folded, label in spelled.items() if name and name.casefold() in folded]
        similar = list(dict.fromkeys([*(spelled[match] for match in matches), *parts]))[:_SIMILAR]
    raise ClassNotFoundError(name, model, len(labels), similar)


def is_same_picture(fc7: NDArray[np.float32], near: NDArray[np.float32]) -> bool:
    """Return whether two vectors are equal up to the rounding of stored vectors, so their distance means nothing."""
    return float(np.linalg.norm(fc7 - near)) <= _SAME * float(np.linalg.norm(near))
