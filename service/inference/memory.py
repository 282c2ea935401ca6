"""An estimate of the memory that a model needs.

Out of scope: reserving memory.
"""

from __future__ import annotations

from typing import Final

from model_store.artifact import Artifact, graph_files

# Measured with the paper's net (228 MB of weights): at most 605 MB while it is loaded, then 260 MB. With a second copy
# of the weights for parallel runs, which is made at the same time: 1,055 MB, then 500 MB.
LOADING_FACTOR: Final = 2.75
_SECOND_COPY: Final = 1.8
_MARGIN: Final = 32 * 1024 * 1024


def needed_to_load(artifact: Artifact, streams: int = 1) -> int:
    """Return the peak number of bytes that loading this version for `streams` parallel runs takes."""
    files = artifact.manifest.files
    factor = LOADING_FACTOR + _SECOND_COPY * (streams > 1)
    return int(factor * sum(files[name].size for name in graph_files(artifact.precision))) + _MARGIN
