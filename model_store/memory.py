"""Memory limits of the machine or container, and tuning of glibc's allocator.

Out of scope: reserving memory.
References: Linux, Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and filesystems/proc.rst
(MemAvailable); mallopt(3), malloc_trim(3).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

_M_ARENA_MAX: Final = -8  # malloc.h


def available(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process can still allocate on the machine or in the container; None if unknown.

    root: the folder that contains `proc` and `sys`.
    """
    lines = (line.split() for line in _lines(root / "proc/meminfo"))
    machine = next((1024 * int(words[1]) for words in lines if words[:1] == ["MemAvailable:"]), None)
    return min((left for left in (machine, _group(root / "sys/fs/cgroup")) if left), default=None)


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


def _group(folder: Path) -> int | None:
    """Return the bytes left below the limit of a control group (version 2 or 1)."""
    return _left(folder, "memory.max", "memory.current", "inactive_file") or _left(
        folder / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    )


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
