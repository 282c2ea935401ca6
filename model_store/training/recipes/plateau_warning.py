"""Detect a net that does not start to learn, and suggest a fix. This is the most common problem with AlexNet.

Out of scope: stopping the run.
References: Caffe issues 59, 401 and 2085 (the paper's initialization on small data sets).
"""

from __future__ import annotations

import math
from collections import deque
from typing import Final

import numpy as np
from numpy.typing import NDArray

from model_store.training.recipe import Recipe

_LEARNING: Final = 0.97  # a mean loss below this share of the chance level means that the net is learning


class PlateauDetector:
    """Detects that the loss is still at chance level after `flat_loss_steps` steps.

    The chance level is the entropy of the class frequencies, which is what a net with dead layers can reach.
    """

    def __init__(self, class_counts: NDArray[np.int64], recipe: Recipe) -> None:
        shares = class_counts / class_counts.sum()
        self._classes = len(class_counts)
        shares = (1 - recipe.label_smoothing) * shares + recipe.label_smoothing / len(shares)
        self._chance = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
        self._recipe = recipe
        self._losses: deque[float] = deque(maxlen=max(1, recipe.flat_loss_steps // 2))
        self._steps = 0

    def after_step(self, loss: float) -> str | None:
        """Record the loss of a step. Returns the warning after step `flat_loss_steps` if the loss is on the plateau."""
        self._steps += 1
        self._losses.append(loss)
        return self._warning() if self._steps == self._recipe.flat_loss_steps else None

    def at_end(self, steps: int) -> str | None:
        """Return the warning at the end of a run of `steps` steps that was too short for `after_step` to give it."""
        return self._warning() if steps < self._recipe.flat_loss_steps else None

    def _warning(self) -> str | None:
        if self._classes < 2 or not self._losses:
            return None
        mean = sum(self._losses) / len(self._losses)
        if mean < _LEARNING * self._chance:
            return None
        cause, fix = self._likely_cause()
        count = f"{self._steps} step{'s' if self._steps > 1 else ''}"
        return (
            f"The loss is still {mean:.3f} after {count}, which is not below the chance level "
            f"(ln({self._classes}) = {math.log(self._classes):.3f}, or {self._chance:.3f} from the class frequencies). "
            f"Likely cause: {cause}. Try {fix}."
        )

    def _likely_cause(self) -> tuple[str, str]:
        rate = self._recipe.learning_rate
        if self._recipe.initialisation == "he" and self._steps < self._recipe.flat_loss_steps:
            return "the run is too short", "more epochs: --minutes 20, or --set epochs=auto"
        if self._recipe.initialisation != "he":
            cause = "with the paper's initial weights, the net hardly leaves this plateau on small data sets"
            return cause, "--recipe small, or --set initialisation=he"
        if rate < 1e-3:
            return "the learning rate is too low", f"--set learning_rate={rate * 10:g}"
        cause = "the learning rate is too high for these images, or images are in the wrong class folders"
        return cause, f"--set learning_rate={rate / 10:g}"
