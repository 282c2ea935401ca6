"""Mixup: each image of a batch is blended with another one, and so are their labels.

Guarantees: one blending factor per batch, drawn from Beta(alpha, alpha). All draws depend only on (seed, epoch, step),
so a resumed run draws the same values. The draws for crops and flips are the same with and without mixup.
Out of scope: label smoothing (part of the loss).
References: Zhang et al. 2018, "mixup"; He et al. 2019, "Bag of Tricks for Image Classification", section 5.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_STREAM: Final = 1  # keeps these draws independent of the augmenter's, whose seed is [seed, epoch, step]


def mix(x: Tensor, labels: Tensor, classes: int, alpha: float, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return blended inputs, of the shape of `x`, and class probabilities as targets, float32 [n, classes].

    x: float32 [n, 3, height, width]; it is not changed. labels: int64 [n]. key: (seed, epoch, step).
    """
    random = np.random.default_rng([*key, _STREAM])
    factor = float(random.beta(alpha, alpha))
    partner = torch.from_numpy(random.permutation(len(x)))
    targets = functional.one_hot(labels, classes).float()
    return torch.lerp(x[partner], x, factor), torch.lerp(targets[partner], targets, factor)
