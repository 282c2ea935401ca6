"""The short form of `make crash`: a few kills."""

from __future__ import annotations

from pathlib import Path

from tests.crash.kill_rounds import KillRounds


def test_a_killed_server_has_all_that_it_acknowledged_and_nothing_half(tmp_path: Path) -> None:
    rounds = KillRounds(tmp_path / "home", seed=7)
    rounds.run(rounds=3)
    assert rounds.acknowledged > 0
