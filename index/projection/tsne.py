"""t-SNE of principal components, with openTSNE.

Guarantees: the same components give the same positions, between -1 and 1. Too few images, or equal ones, keep the
positions of PCA, because there is nothing to optimize.
References: van der Maaten, Hinton, 2008 (t-SNE); Linderman et al., 2019 (FIt-SNE); Poličar et al., 2024 (openTSNE).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final

import faiss
import numpy as np
from numpy.typing import NDArray

from model_store.errors import MissingExtraError

_PERPLEXITY: Final = 30
_FEWEST: Final = 10  # images; below, three neighbors of each would be most of them
_EARLY, _LATE = 250, 500  # iterations with and without exaggeration
_EVERY: Final = 10  # iterations between two looks at `stopped`
_FFT_FROM: Final = 5000  # images from which interpolation is faster than Barnes-Hut
_NOISE: Final = 1e-4  # t-SNE starts with positions of this standard deviation
Floats = NDArray[np.float32]


def import_opentsne() -> Any:
    """Import openTSNE. Raises MissingExtraError."""
    try:
        import openTSNE  # noqa: PLC0415 - slow to import, and an optional dependency
    except ImportError:
        raise MissingExtraError("openTSNE", "map") from None
    return openTSNE


def tsne(
    components: Floats,
    stopped: Callable[[], bool] = lambda: False,
    progress: Callable[[float], None] = lambda _: None,
) -> Floats | None:
    """Return positions, float32 [n, components] -> [n, 2]; None once `stopped()` is true, or if there is nothing to do.

    progress: called with the share of the iterations that are done. Raises MissingExtraError.
    """
    module = import_opentsne()
    if len(components) < _FEWEST or np.ptp(components, axis=0).max() < 1e-6:
        return None
    perplexity = min(_PERPLEXITY, (len(components) - 1) / 3)
    affinities = module.affinity.PerplexityBasedNN(
        perplexity=perplexity, knn_index=_neighbors(module, components, int(3 * perplexity)), n_jobs=1
    )
    start = np.random.default_rng(0).normal(0, _NOISE / 10, (len(components), 2))
    start += components[:, :2] / max(float(components[:, 0].std()), 1e-12) * _NOISE
    embedding = module.TSNEEmbedding(
        start,
        affinities,
        negative_gradient_method="fft" if len(components) >= _FFT_FROM else "bh",
        n_jobs=1,
        random_state=0,
    )
    done, ended = 0, False

    def look(*_: object) -> bool:
        nonlocal done, ended
        done += _EVERY
        progress(min(done / (_EARLY + _LATE), 1.0))
        ended = ended or stopped()
        return ended

    options = {"callbacks": look, "callbacks_every_iters": _EVERY}
    embedding = embedding.optimize(n_iter=_EARLY, exaggeration=12, momentum=0.5, **options)
    if not ended:
        embedding = embedding.optimize(n_iter=_LATE, momentum=0.8, **options)
    if ended:
        return None
    found = np.asarray(embedding, np.float32)
    found = found - found.mean(axis=0)
    scaled: Floats = found / max(float(np.abs(found).max()), 1e-12)
    return scaled


def _neighbors(module: Any, components: Floats, count: int) -> Any:
    """Return the nearest neighbors of each row without itself, as openTSNE expects them."""
    search = faiss.IndexFlatL2(components.shape[1])
    search.add(np.ascontiguousarray(components))
    squared, found = search.search(np.ascontiguousarray(components), count + 1)
    # Equal rows can be found before the row itself: drop it wherever it is, else the last one.
    own = found == np.arange(len(found))[:, None]
    own[~own.any(axis=1), -1] = True
    distances = np.sqrt(np.maximum(squared[~own], 0)).reshape(len(found), count)
    return module.nearest_neighbors.PrecomputedNeighbors(found[~own].reshape(len(found), count), distances)
