"""How fast photographs are added to an index, against how fast they are embedded: for benchmarks/search.py.

Promises: both go through `build_index`, the code of `fc7 index build`, with the same pictures in turns; alone, what was
embedded is given to an index that keeps nothing.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from statistics import median
from typing import cast

from benchmarks.photographs import read_photographs
from benchmarks.search_runs import FINGERPRINT, MODEL
from index.bulk.folder import build_index
from index.interface import ImageIndex
from index.local.index import LocalImageIndex
from index.records import AddOutcome, IndexOptions, NewImage
from model_store.runtime.runner import Runner
from model_store.store import ModelStore

_PHOTOGRAPHS = 400
_ROUNDS = 3


class _Nowhere:
    """Takes images, as an index does, and keeps none."""

    def lookup(self, keys: Sequence[str]) -> dict[str, str]:
        """Know no key."""
        del keys
        return {}

    def add_many(self, images: Sequence[NewImage]) -> list[AddOutcome]:
        """Say that all were added."""
        return [AddOutcome.ADDED for _ in images]


def measure_adding(index_home: Path, home: Path, source: Path, *, rounds: int = _ROUNDS) -> dict[str, float]:
    """Return photographs a second, medians: `embedded_per_s` alone and `added_per_s` into the index of `index_home`.

    home: its active version embeds. The index has its `fast` codes; what is added is deleted again.
    """
    rates: dict[str, list[float]] = {"embedded_per_s": [], "added_per_s": []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for number, data in enumerate(read_photographs(source, _PHOTOGRAPHS)):
            (folder / f"added-{number}.jpg").write_bytes(data)
        with (
            closing(Runner(ModelStore(home).active_artifact())) as runner,
            LocalImageIndex.open(
                index_home, IndexOptions(FINGERPRINT, MODEL, fast_from=1, cache_after=1 << 40)
            ) as index,
        ):
            runner.warm_up((32,))
            for _ in range(rounds):
                for name, target in (("embedded_per_s", cast(ImageIndex, _Nowhere())), ("added_per_s", index)):
                    began = time.perf_counter()
                    report = build_index(folder, target, runner, workers=len(os.sched_getaffinity(0)))
                    rates[name].append(report.added / (time.perf_counter() - began))
                for path in folder.iterdir():
                    if index.contains(path.name):
                        index.delete(path.name)
    return {name: median(values) for name, values in rates.items()}
