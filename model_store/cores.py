"""The number of cores that this process may use. More threads than that only wait for each other.

Out of scope: cores of other machines.
References: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
"""

from __future__ import annotations

import math
import os
from pathlib import Path

from threadpoolctl import ThreadpoolController

from model_store.control_groups import control_groups


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that the CPU affinity and the container's CPU quota allow, at least 1.

    A fractional quota is rounded up. root: the folder that contains `proc` and `sys` (tests pass another one).
    """
    shares = [_share(_words(group / "cpu.max")) for group in control_groups(root)]
    shares += [
        _share([*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")])
        for group in control_groups(root, "cpu")
    ]
    cores = len(os.sched_getaffinity(0))
    return max(1, min([cores, *(math.ceil(share) for share in shares if share is not None)]))


def limit_blas() -> None:
    """Limit NumPy's matrix products to one thread from now on, in the whole process.

    OpenBLAS splits even a product of one vector. Its threads then spin for 20 ms on cores that the net needs.
    """
    ThreadpoolController().select(internal_api="openblas").select(threading_layer="pthreads").limit(limits=1)


def _share(words: list[str]) -> float | None:
    """Return quota / period, or None without a limit ("max" in cgroup v2, -1 in v1)."""
    if len(words) != 2 or not words[0].isdecimal() or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
