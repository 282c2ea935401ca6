"""Memory limits, read from small copies of the system folders, and heaps, counted in the C library's report."""

from __future__ import annotations

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from model_store.memory import available

_PROGRAM = """
import ctypes, sys, threading
from model_store.memory import limit_arenas
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
if sys.argv[1] == "limited":
    limit_arenas()
start = threading.Barrier(6)
def work():
    start.wait()
    libc.malloc(1000)
    start.wait()
threads = [threading.Thread(target=work) for _ in range(6)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
report = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, report)
libc.fclose(report)
"""


def count_heaps(folder: Path, mode: str) -> int:
    """Return how many heaps six threads of a process use."""
    subprocess.run([sys.executable, "-c", _PROGRAM, mode, str(folder / mode)], check=True)
    return (folder / mode).read_text().count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_threads_share_two_heaps(tmp_path: Path) -> None:
    assert count_heaps(tmp_path, "each") > 2
    assert count_heaps(tmp_path, "limited") <= 2


def test_available_memory_is_the_smaller_limit_of_machine_and_container(tmp_path: Path) -> None:
    assert available(tmp_path) is None
    (tmp_path / "proc").mkdir()
    (tmp_path / "proc/meminfo").write_text("MemTotal: 9000 kB\nMemAvailable:    2000 kB\n")
    assert available(tmp_path) == 2_048_000
    group = tmp_path / "sys/fs/cgroup"
    group.mkdir(parents=True)
    for name, text in (("max", "max"), ("current", "900000"), ("stat", "anon 5\ninactive_file 100000\n")):
        (group / f"memory.{name}").write_text(text)
    assert available(tmp_path) == 2_048_000
    (group / "memory.max").write_text("1000000\n")
    assert available(tmp_path) == 200_000
    for name in ("max", "current", "stat"):
        (group / f"memory.{name}").unlink()
    first = group / "memory"
    first.mkdir()
    for name, text in (("usage_in_bytes", "900000"), ("stat", "inactive_file 5\ntotal_inactive_file 150000\n")):
        (first / f"memory.{name}").write_text(text)
    (first / "memory.limit_in_bytes").write_text(
        "9223372036854771712\n"
    )  # cgroup version 1 reports this if there is no limit
    assert available(tmp_path) == 2_048_000
    (first / "memory.limit_in_bytes").write_text("1000000\n")
    assert available(tmp_path) == 250_000


def test_limits_of_outer_groups_and_of_the_process_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inner = tmp_path / "sys/fs/cgroup/jobs/run"
    for folder, limit in ((inner, "max"), (inner.parent, "3000000")):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text("1000000")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/jobs/run\n")
    assert available(tmp_path) == 2_000_000
    (tmp_path / "proc/self/statm").write_text("100 50 10 5 0 20 0\n")
    page = resource.getpagesize()
    monkeypatch.setattr(resource, "getrlimit", lambda _: (300 * page, 300 * page))
    assert available(tmp_path) == 200 * page


def test_limits_of_version_1_are_read_from_the_groups_own_folder(tmp_path: Path) -> None:
    group = tmp_path / "sys/fs/cgroup/memory/jobs"
    group.mkdir(parents=True)
    (group / "memory.limit_in_bytes").write_text("5000000")
    (group / "memory.usage_in_bytes").write_text("1000000")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("5:cpu,cpuacct:/jobs\n4:memory:/jobs\n")
    assert available(tmp_path) == 4_000_000
