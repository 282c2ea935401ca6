"""The number of cores that this process may use. More threads than that only wait for each other.

Out of scope: cores of other machines.
References: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and scheduler/sched-bwc.rst (cpu.cfs_quota_us).
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the number of cores that the CPU affinity and the container's CPU quota allow, at least 1.

    A fractional quota is rounded up. root: the folder that contains `sys` (tests pass another one).
    """
    cores, groups = len(os.sched_getaffinity(0)), root / "sys/fs/cgroup"
    share = _share(_words(groups / "cpu.max"))
    if share is None:
        share = _share([*_words(groups / "cpu/cpu.cfs_quota_us"), *_words(groups / "cpu/cpu.cfs_period_us")])
    return cores if share is None else max(1, min(cores, math.ceil(share)))


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
