"""Mixup: each picture of a batch is blended with another one of it, and its label likewise.

Promises: one share for a batch, drawn from Beta(alpha, alpha) by (seed, epoch, step) alone, so that a resumed run
blends as an uninterrupted one, and the crops and flips drawn for a step stay what they are without it.
Does not: smooth labels (the loss does).
Source: Zhang et al. 2018, "mixup"; He et al. 2019, "Bag of Tricks for Image Classification", section 5.
"""

from __future__ import annotations

from typing import Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

_STREAM: Final = 1  # sets these draws apart from the augmenter's, which are seeded by [seed, epoch, step]


def mix(x: Tensor, labels: Tensor, classes: int, alpha: float, key: tuple[int, int, int]) -> tuple[Tensor, Tensor]:
    """Return blended inputs, of the shape of `x`, and their targets: shares of the classes, float32 [n, classes].

    x: float32 [n, 3, height, width]; it is not changed. labels: int64 [n]. key: (seed, epoch, step).
    """
    random = np.random.default_rng([*key, _STREAM])
    share = float(random.beta(alpha, alpha))
    partner = torch.from_numpy(random.permutation(len(x)))
    targets = functional.one_hot(labels, classes).float()
    return torch.lerp(x[partner], x, share), torch.lerp(targets[partner], targets, share)
