"""Checks of the machine: processor, memory, open files, clock, and the disk of the home.

Out of scope: benchmarks. The time of a synced write is the only thing that is measured, because every write of the
index waits for it.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from model_store.cores import usable_cores
from model_store.memory import available
from service.cli.doctor.finding import Finding

_MIN_FILES: Final = 1024
_MIN_FREE: Final = 2_000_000_000  # bytes: a version and its training run take 1 GB
_SLOW_SYNC_S: Final = 0.05
_SYNCS: Final = 10
_FEATURES: Final = {  # flags in /proc/cpuinfo, and what they are good for
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx512_vnni": "AVX-512 VNNI (int8)",
    "avx_vnni": "AVX VNNI (int8)",
    "avx512_bf16": "AVX-512 BF16",
    "amx_bf16": "AMX BF16",
    "amx_int8": "AMX int8",
}
_REMOTE: Final = ("nfs", "cifs", "smb", "fuse.sshfs", "9p", "afs", "lustre", "ceph", "glusterfs")


def check_processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> Finding:
    """Return which instructions the processor has that matter for speed."""
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        lines = []
    fields = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = set(fields.get("flags", fields.get("Features", "")).split())
    name = fields.get("model name", "unknown processor")
    found = ", ".join(label for flag, label in _FEATURES.items() if flag in flags) or "none of the known instructions"
    detail = f"{name}, {usable_cores()} usable cores; {found}"
    if flags and not flags & {"avx2", "asimd"}:
        return Finding.warning("processor", detail, "Use a processor with AVX2 (x86) or NEON (ARM): it is much faster.")
    return Finding.ok("processor", detail)


def check_memory(needed: int) -> Finding:
    """Compare the memory that is left with what the active model takes to load, `needed` bytes."""
    left = available()
    if left is None:
        return Finding.ok("memory", "no limit is known")
    detail = f"{left / 1e9:.1f} GB available; loading the model takes at most {needed / 1e9:.1f} GB"
    if left < needed:
        fix = "End other programs, raise the container's memory limit, or use a machine with more memory."
        return Finding.problem("memory", detail, fix)
    return Finding.ok("memory", detail)


def check_open_files() -> Finding:
    """Check how many files and connections the process may have open."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < _MIN_FILES:
        fix = f"Raise the limit: ulimit -Hn {_MIN_FILES * 64}, or LimitNOFILE= in a systemd unit."
        return Finding.warning("open files", f"at most {hard:,}", fix)
    return Finding.ok("open files", "no limit" if hard == resource.RLIM_INFINITY else f"at most {hard:,}")


def check_clock(home: Path) -> Finding:
    """Check that the clock is not behind the newest file of the home, or before fc7 was written."""
    now = time.time()
    files = [home / "active.json", *home.glob("models/*/*/manifest.json"), *home.glob("index/*")]
    newest = max((file.stat().st_mtime for file in files if file.exists()), default=0.0)
    built = Path(__file__).stat().st_mtime
    behind = max(newest, built) - now
    text = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now))
    if behind > 60:
        fix = "Set the clock, for example with timedatectl set-ntp true. Times in the index and in logs depend on it."
        return Finding.warning("clock", f"{text}, which is {behind:,.0f} s before the newest file of fc7", fix)
    return Finding.ok("clock", text)


def check_home(home: Path, mounts: Path = Path("/proc/mounts")) -> Iterator[Finding]:
    """Check that the home can be written to, how much space is left, and how long a synced write takes.

    mounts: the list of mounted file systems.
    """
    existing = next(folder for folder in (home, *home.parents) if folder.exists())
    where = str(home) if existing == home else f"{home} (will be created)"
    if not existing.is_dir():
        fix = "Set FC7_HOME to a folder."
        yield Finding.problem("home", f"{existing} is not a folder", fix)
        return
    if not os.access(existing, os.W_OK | os.X_OK):
        fix = f"Give the user {_user()} write access, for example: sudo chown -R {_user()} {existing}"
        yield Finding.problem("home", f"{existing} cannot be written to by the user {_user()}", fix)
        return
    kind = _file_system(existing, mounts)
    if kind.startswith(_REMOTE):
        fix = (
            "Put FC7_HOME on a local disk: locks and synced writes of SQLite are not reliable on network file systems."
        )
        yield Finding.warning("home", f"{where} is on a network file system ({kind})", fix)
    else:
        yield Finding.ok("home", f"{where}, file system {kind or 'unknown'}")
    free = shutil.disk_usage(existing).free
    detail = f"{free / 1e9:.1f} GB free"
    if free < _MIN_FREE:
        yield Finding.warning("disk space", detail, "Free some space: a version and its training run take about 1 GB.")
    else:
        yield Finding.ok("disk space", detail)
    yield _check_syncs(existing)


def _check_syncs(folder: Path) -> Finding:
    times = []
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            for _ in range(_SYNCS):
                started = time.perf_counter()
                file.write(bytes(8192))
                file.flush()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - started)
    except OSError as error:
        return Finding.problem("disk writes", f"{folder}: {error.strerror}", "Free some space, or use another disk.")
    median = statistics.median(times)
    detail = f"a synced write takes {median * 1000:.1f} ms"
    if median > _SLOW_SYNC_S:
        return Finding.warning("disk writes", detail, "Use an SSD: every addition to the index waits for such writes.")
    return Finding.ok("disk writes", detail)


def _file_system(folder: Path, mounts: Path) -> str:
    """Return the type of the file system that contains `folder`, or "" if it is unknown."""
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return ""
    path = folder.resolve()
    points = {Path(line[1].encode().decode("unicode_escape")): line[2] for line in lines if len(line) > 2}
    return next((points[parent] for parent in (path, *path.parents) if parent in points), "")


def _user() -> str:
    return os.environ.get("USER") or (str(os.getuid()) if sys.platform != "win32" else "")
