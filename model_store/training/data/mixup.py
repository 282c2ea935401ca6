"""Mixup, and the rows of a batch that a process needs for its share of it.

Guarantees: factor and partners depend only on (seed, epoch, step) and are drawn for the whole batch, so processes that
share a batch blend the same images as a single process. A process reads its own images and their partners; images are
not exchanged. Mixup does not change the draws of the augmentation.
References: Zhang et al. 2018; He et al. 2019, section 5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

_MIXUP: Final = 1  # makes these draws independent of those of the augmentation (seed [seed, epoch, step])


@dataclass(frozen=True, slots=True)
class Share:
    """A process's share of a batch: the rows from `first` to `last` - 1 of `count`.

    rows: all rows that the process reads, ascending, int64: its own and their partners. partners: the partner of each
    own row, int64 [last - first]; None without mixup. factor: of the own image in a blend.
    """

    first: int
    last: int
    count: int
    rows: NDArray[np.int64]
    partners: NDArray[np.int64] | None = None
    factor: float = 1.0


def draw_share(own: tuple[int, int], count: int, alpha: float, key: tuple[int, int, int]) -> Share:
    """Return the share of a batch of `count` images whose own rows are `own`: (first, last + 1).

    alpha: the factor is drawn from Beta(alpha, alpha) for the batch; 0: no mixup. key: (seed, epoch, step).
    """
    rows = np.arange(*own)
    if not alpha:
        return Share(*own, count, rows)
    random = np.random.default_rng([*key, _MIXUP])
    factor = float(random.beta(alpha, alpha))
    partners = random.permutation(count)[slice(*own)]
    return Share(*own, count, np.union1d(rows, partners), partners, factor)


def mix(x: Tensor, labels: Tensor, classes: int, share: Share) -> tuple[Tensor, Tensor]:
    """Blend each own image of `share` with its partner.

    Returns inputs [own rows, 3, height, width], and class probabilities as targets, float32 [own rows, classes].
    Without mixup, returns `x` and `labels`.
    x: float32 [rows, 3, height, width]; it is not changed. labels: int64 [rows].
    """
    if share.partners is None:
        return x, labels
    own, partners = (
        torch.from_numpy(np.searchsorted(share.rows, wanted))
        for wanted in (np.arange(share.first, share.last), share.partners)
    )
    targets = functional.one_hot(labels, classes).float()
    mine = x if len(own) == len(x) else x[own]  # a single process has all rows
    return torch.lerp(x[partners], mine, share.factor), torch.lerp(targets[partners], targets[own], share.factor)
