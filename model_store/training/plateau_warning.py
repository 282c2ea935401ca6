"""Notice a net that does not begin to learn, and say why that may be: the first thing that users report of this net.

Does not: stop a run.
Source: Caffe's issues 59, 401 and 2085; the paper's initialisation on little data.
"""

from __future__ import annotations

import math
from collections import deque

import numpy as np
from numpy.typing import NDArray

from model_store.training.recipe import Recipe


class FlatLossWatch:
    """Notices a net that does not begin to learn: after `flat_loss_steps` steps its loss is still that of a guess.

    A guess is ln(classes), or the entropy of the classes' frequencies, which is all that dead layers can learn.
    """

    def __init__(self, class_counts: NDArray[np.int64], recipe: Recipe) -> None:
        shares = class_counts / class_counts.sum()
        self._classes = len(class_counts)
        shares = (1 - recipe.label_smoothing) * shares + recipe.label_smoothing / len(shares)
        self._guess = float(-(shares[shares > 0] * np.log(shares[shares > 0])).sum())
        self._recipe = recipe
        self._losses: deque[float] = deque(maxlen=max(1, recipe.flat_loss_steps // 2))
        self._steps = 0

    def after_step(self, loss: float) -> str | None:
        """Take a step's loss; return the warning, once, when it is due."""
        self._steps += 1
        self._losses.append(loss)
        if self._steps != self._recipe.flat_loss_steps or self._classes < 2:
            return None
        mean = sum(self._losses) / len(self._losses)
        if mean < 0.97 * self._guess:
            return None
        recipe = self._recipe
        if recipe.initialisation != "he":
            cause = "the paper's initial weights hardly leave this plateau on little data"
            mend = "--recipe small, or --set initialisation=he"
        elif recipe.learning_rate < 1e-3:
            cause, mend = "the learning rate is low", f"--set learning_rate={recipe.learning_rate * 10:g}"
        else:
            cause = "the learning rate is too high for these images, or folders and pictures do not belong together"
            mend = f"--set learning_rate={recipe.learning_rate / 10:g}"
        return (
            f"after {self._steps} steps the loss is still {mean:.3f}, as of a guess (ln({self._classes}) = "
            f"{math.log(self._classes):.3f}; by the classes' frequencies {self._guess:.3f}). Likely cause: {cause}. "
            f"Try {mend}"
        )
