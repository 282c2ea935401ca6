"""How many cores this process may keep busy: threads beyond them only wait for each other, and are throttled.

Does not: count cores of other machines. Source: Linux, Documentation/admin-guide/cgroup-v2.rst (cpu.max) and
scheduler/sched-bwc.rst (cpu.cfs_quota_us).
"""

from __future__ import annotations

import math
import os
from pathlib import Path


def usable_cores(root: Path = Path("/")) -> int:
    """Return the cores that this process may run on, or its container's share of time in cores, rounded up, if fewer.

    root: where `sys` is.
    """
    cores, groups = len(os.sched_getaffinity(0)), root / "sys/fs/cgroup"
    share = _share(_words(groups / "cpu.max"))
    if share is None:
        share = _share([*_words(groups / "cpu/cpu.cfs_quota_us"), *_words(groups / "cpu/cpu.cfs_period_us")])
    return cores if share is None else max(1, min(cores, math.ceil(share)))


def _share(words: list[str]) -> float | None:
    """Return quota over period; None where there is no limit ("max", or -1 in version 1)."""
    if len(words) != 2 or not words[0].isdecimal() or not int(words[1]):
        return None
    return int(words[0]) / int(words[1])


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
