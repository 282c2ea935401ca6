"""Memory limits of the machine, of control groups and of the process, and tuning of glibc's allocator.

Out of scope: reserving memory.
References: Linux, Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and filesystems/proc.rst
(MemAvailable); getrlimit(2); mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
import resource
from pathlib import Path
from typing import Final

from model_store.control_groups import control_groups

_M_ARENA_MAX: Final = -8  # malloc.h


def available(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process can still allocate, or None if no limit is known.

    The machine, each control group of the process and `ulimit -v` have limits. root: the folder that contains `proc`
    and `sys`.
    """
    lines = (line.split() for line in _lines(root / "proc/meminfo"))
    machine = next((1024 * int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]), None)
    groups = [_left(group, "memory.max", "memory.current", "inactive_file") for group in control_groups(root)]
    groups += [
        _left(group, "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        for group in control_groups(root, "memory")
    ]
    return min((left for left in (machine, _address_space(root), *groups) if left), default=None)


def return_freed_memory() -> None:
    """Return freed memory to the system. glibc would keep some of it; other C libraries are left alone."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def limit_arenas() -> None:
    """Make all threads share two of glibc's heaps, because each heap may keep memory that was freed.

    Call it before threads are started.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def _address_space(root: Path) -> int | None:
    """Return the bytes left below the limit of the process's address space (ulimit -v)."""
    limit, _ = resource.getrlimit(resource.RLIMIT_AS)
    used = _lines(root / "proc/self/statm")
    if limit == resource.RLIM_INFINITY or not used:
        return None
    return max(1, limit - int(used[0].split()[0]) * resource.getpagesize())


def _left(folder: Path, limit_file: str, used_file: str, cache_line: str) -> int | None:
    limit, used = _lines(folder / limit_file), _lines(folder / used_file)
    if not limit or not used or limit[0] == "max":
        return None
    stat = _lines(folder / "memory.stat")
    # The kernel can reclaim cached file pages, so they count as available.
    cached = next((line.split()[1] for line in stat if line.startswith(f"{cache_line} ")), "0")
    return max(1, int(limit[0]) - int(used[0]) + int(cached))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
