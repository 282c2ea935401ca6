"""Counting usable cores under CPU affinity and container quotas."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from model_store.cores import usable_cores

SECOND = "sys/fs/cgroup/cpu.max"
QUOTA, PERIOD = "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "sys/fs/cgroup/cpu/cpu.cfs_period_us"


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({}, 8),
        ({SECOND: "max 100000\n"}, 8),
        ({SECOND: "200000 100000\n"}, 2),
        ({SECOND: "150000 100000\n"}, 2),
        ({SECOND: "20000 100000\n"}, 1),
        ({SECOND: "6400000 100000\n"}, 8),
        ({QUOTA: "-1\n", PERIOD: "100000\n"}, 8),
        ({QUOTA: "300000\n", PERIOD: "100000\n"}, 3),
        ({QUOTA: "300000\n"}, 8),
    ],
)
def test_container_cpu_quota_limits_the_cores(
    files: dict[str, str], cores: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    for name, text in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    assert usable_cores(tmp_path) == cores


def test_the_quota_of_an_outer_group_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))
    group = tmp_path / "sys/fs/cgroup/jobs/run"
    group.mkdir(parents=True)
    (group / "cpu.max").write_text("max 100000")
    (group.parent / "cpu.max").write_text("300000 100000")
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text("0::/jobs/run\n")
    assert usable_cores(tmp_path) == 3
