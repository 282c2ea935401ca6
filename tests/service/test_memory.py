"""What the process tells the C library about its heaps, seen by the library's own report."""

from __future__ import annotations

import ctypes
import subprocess
import sys
from pathlib import Path

import pytest

_PROGRAM = """
import ctypes, sys, threading
from service.memory import few_arenas
libc = ctypes.CDLL(None)
libc.malloc.restype = libc.fopen.restype = ctypes.c_void_p
if sys.argv[1] == "few":
    few_arenas()
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


def heaps(folder: Path, word: str) -> int:
    """Return how many heaps six threads of a process share."""
    subprocess.run([sys.executable, "-c", _PROGRAM, word, str(folder / word)], check=True)
    return (folder / word).read_text().count("<heap nr=")


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_info"), reason="the C library is not glibc")
def test_threads_share_two_heaps(tmp_path: Path) -> None:
    assert heaps(tmp_path, "each") > 2
    assert heaps(tmp_path, "few") <= 2
