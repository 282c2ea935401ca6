"""How much memory there is for one more model, by what the kernel and the container's limit say; giving it back.

Does not: reserve it. Source: Linux, Documentation/admin-guide/cgroup-v2.rst, cgroup-v1/memory.rst and
filesystems/proc.rst (MemAvailable).
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Final

from model_store.artifact import Artifact, graph_files

# Measured with the paper's net (228 MB of weights): 605 MB at the most while it is loaded, 260 MB at rest; with the
# second copy of runs side by side, which is made at the same time, 1,055 MB and 500 MB.
LOADING_FACTOR: Final = 2.75
_SECOND_COPY: Final = 1.8
_MARGIN: Final = 32 * 1024 * 1024
_M_ARENA_MAX: Final = -8  # malloc.h


def needed_to_load(artifact: Artifact, streams: int = 1) -> int:
    """Return how many bytes loading this version for so many streams takes at the most, beside what is loaded."""
    files = artifact.manifest.files
    factor = LOADING_FACTOR + _SECOND_COPY * (streams > 1)
    return int(factor * sum(files[name].size for name in graph_files(artifact.precision))) + _MARGIN


def available(root: Path = Path("/")) -> int | None:
    """Return how many bytes this process may still take: the machine's, or the container's limit; None if unknown.

    root: where `proc` and `sys` are.
    """
    amounts = [amount for amount in (_machine(root / "proc/meminfo"), _group(root / "sys/fs/cgroup")) if amount]
    return min(amounts) if amounts else None


def give_back() -> None:
    """Return freed memory to the system, where the C library is glibc: it keeps what it thinks it may need again."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def few_arenas() -> None:
    """Have the process's threads share two heaps, where the C library is glibc: each may keep what it has freed.

    Call it before there are threads. Source: mallopt(3).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_M_ARENA_MAX, 2)


def _machine(path: Path) -> int | None:
    return next((1024 * int(line.split()[1]) for line in _lines(path) if line.startswith("MemAvailable:")), None)


def _group(folder: Path) -> int | None:
    """Return what is left of a control group's limit; pages of files can be taken back, so they count."""
    return _left(folder, "memory.max", "memory.current", "inactive_file") or _left(
        folder / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"
    )


def _left(folder: Path, limit_file: str, used_file: str, files_line: str) -> int | None:
    limit, used = _lines(folder / limit_file), _lines(folder / used_file)
    if not limit or not used or limit[0] == "max":
        return None
    stat = _lines(folder / "memory.stat")
    files = next((line.split()[1] for line in stat if line.startswith(f"{files_line} ")), "0")
    return max(1, int(limit[0]) - int(used[0]) + int(files))


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
