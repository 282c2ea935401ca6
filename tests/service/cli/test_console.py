"""Progress without a terminal: a line every 15 seconds."""

from __future__ import annotations

import pytest

from service.cli import console


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    seconds = [1000.0]
    monkeypatch.setattr("service.cli.console.time.monotonic", lambda: seconds[0])
    return seconds


def test_progress_is_printed_as_lines(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with console.ProgressBar("classifying", "images") as bar:
        for done in range(0, 1_600, 100):
            bar.update(done, 3_000, "2 skipped")
            now[0] += 3
    shown = capsys.readouterr()
    assert shown.out == ""
    assert shown.err.splitlines() == [
        "classifying: 500 of 3,000 (17%)  2 skipped",
        "classifying: 1,000 of 3,000 (33%)  2 skipped",
        "classifying: 1,500 of 3,000 (50%)  2 skipped",
    ]


def test_lines_without_a_total_and_in_bytes(now: list[float], capsys: pytest.CaptureFixture[str]) -> None:
    with (
        console.ProgressBar("classifying", "images") as images,
        console.ProgressBar("a.pth", "bytes", total=4e6) as file,
    ):
        now[0] += 20
        images.update(1_200, None)
        file.advance(1e6)
        file.advance(1e6)
    assert capsys.readouterr().err.splitlines() == ["classifying: 1,200 images", "a.pth: 1.0 MB of 4.0 MB (25%)"]


def test_a_short_run_prints_no_lines(capsys: pytest.CaptureFixture[str]) -> None:
    with console.ProgressBar("classifying", "images") as bar:
        bar.update(5, 5)
    assert capsys.readouterr().err == ""
