"""A short form of `make crash` with a few kills."""

from __future__ import annotations

from pathlib import Path

from tests.crash.kill_rounds import KillRounds


def test_killed_server_keeps_every_acknowledged_change(tmp_path: Path) -> None:
    rounds = KillRounds(tmp_path / "home", seed=7)
    rounds.run(rounds=2)
    assert rounds.acknowledged > 0
