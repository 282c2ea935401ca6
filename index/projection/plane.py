"""Principal components of vectors: the map that needs no optimization, and the input of the one that does."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from index.search.product_code import principal_axes

COMPONENTS: Final = 50
FIT_SAMPLE: Final = 2048
"""Number of vectors to fit; more of them change the first components by little."""
Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Plane:
    """The axes of largest variance.

    mean: float32 [4096]. axes: float32 [4096, components]. scale: of the first two components, so that the images
    lie between -1 and 1.
    """

    mean: Floats
    axes: Floats
    scale: float

    @classmethod
    def fit(cls, vectors: NDArray[np.float16]) -> Plane:
        """Return the axes of at least one vector, float16 [n, 4096]."""
        rows = vectors.astype(np.float32)
        mean = rows.mean(axis=0)
        axes = principal_axes(rows - mean, min(COMPONENTS, len(rows)))
        if axes.shape[1] < 2:
            axes = np.hstack([axes, np.zeros((len(axes), 2 - axes.shape[1]), np.float32)])
        furthest = float(np.abs((rows - mean) @ axes[:, :2]).max())
        return cls(mean, axes, 1 / furthest if furthest > 1e-6 else 1.0)  # equal vectors differ by rounding only

    def project(self, vectors: NDArray[np.float16]) -> Floats:
        """Return the components of vectors, float16 [n, 4096] -> float32 [n, components]."""
        found: Floats = np.matmul(vectors.astype(np.float32) - self.mean, self.axes)
        return found
