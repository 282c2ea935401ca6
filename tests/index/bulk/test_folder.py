"""A folder into the index, and the index to another model, with a real runner over a tiny real model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from index.bulk.folder import build_index
from index.bulk.reembed import reembed
from index.bulk.report import BuildReport, ReembedReport
from index.errors import FolderError, IndexModelError, IndexUnavailableError
from index.factory import read_stats
from index.local.index import LocalImageIndex
from index.records import IndexOptions
from model_store.errors import DatasetError
from model_store.image import prepare, views
from model_store.runtime.runner import Outputs, Runner
from tests.support.tiny_model import publish_tiny_model


def save(path: Path, seed: int) -> None:
    """Write a picture of coloured squares, so that any two differ much."""
    path.parent.mkdir(parents=True, exist_ok=True)
    squares = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    Image.fromarray(squares).resize((320, 240), Image.Resampling.NEAREST).save(path)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def runner(home: Path) -> Iterator[Runner]:
    runner = Runner(publish_tiny_model(home))
    yield runner
    runner.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    for n in range(9):
        save(folder / f"{'ab'[n % 2]}" / f"{n}.png", n)
    return folder


def open_for(home: Path, runner: Runner, *, switch: bool = False) -> LocalImageIndex:
    artifact = runner.artifact
    return LocalImageIndex.open(home, IndexOptions(artifact.fingerprint, artifact.id, switch=switch))


def test_a_folder_is_indexed_once_and_each_picture_is_its_own_nearest(home: Path, folder: Path, runner: Runner) -> None:
    calls: list[int] = []
    with open_for(home, runner) as index:
        report = build_index(folder, index, runner, batch_size=4, progress=lambda so_far: calls.append(so_far.seen))
        assert (report.total, report.seen, report.added, report.skipped) == (9, 9, 9, [])
        assert calls == [4, 8, 9]
        record = index.get("b/3.png")
        assert (record.width, record.height, record.size) == (320, 240, (folder / "b/3.png").stat().st_size)
        assert prepare(index.picture("b/3.png")).shape == (256, 256, 3)
        vectors = runner.run(views(prepare((folder / "b/3.png").read_bytes())[np.newaxis])).fc7
        nearest, second = index.search(vectors, 2)[0]
        assert nearest.key == "b/3.png"
        assert nearest.distance < 1e-3 < second.distance
        again = build_index(folder, index, runner)
        assert (again.seen, again.unchanged, again.added) == (9, 9, 0)
        save(folder / "b/3.png", 77)
        save(folder / "new.png", 78)
        third = build_index(folder, index, runner)
        assert (third.added, third.replaced, third.unchanged) == (1, 1, 8)


def test_what_cannot_be_read_is_listed_with_its_reason_and_the_rest_is_added(
    home: Path, folder: Path, runner: Runner
) -> None:
    (folder / "text.jpg").write_text("no picture")
    (folder / "empty.png").write_bytes(b"")
    cut = (folder / "a/0.png").read_bytes()
    (folder / "a/cut.png").write_bytes(cut[: len(cut) // 2])
    save(folder / ("x" * 120) / ("y" * 100 + ".png"), 1)
    with open_for(home, runner) as index:
        report = build_index(folder, index, runner, batch_size=2, max_pixels=100_000)
        assert (report.total, report.seen, report.added) == (13, 13, 9)
        reasons = {Path(path).name[:9]: reason for path, reason in report.skipped}
        assert set(reasons) == {"text.jpg", "empty.png", "cut.png", "y" * 9}
        assert "225 characters" in reasons["y" * 9]
        assert index.stats().images == 9
        assert build_index(folder, index, runner, max_pixels=1000).unchanged == 9


def test_a_folder_without_images_is_an_error(home: Path, tmp_path: Path, runner: Runner) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("x")
    with open_for(home, runner) as index:
        with pytest.raises(FolderError, match="none has no images"):
            build_index(tmp_path / "none", index, runner)
        with pytest.raises(DatasetError, match="missing"):
            build_index(tmp_path / "missing", index, runner)


def test_ctrl_c_keeps_what_was_committed_and_the_next_call_goes_on(home: Path, folder: Path, runner: Runner) -> None:
    def interrupt(so_far: BuildReport) -> None:
        if so_far.seen == 4:
            raise KeyboardInterrupt

    with open_for(home, runner) as index:
        report = build_index(folder, index, runner, batch_size=2, progress=interrupt)
        assert report.interrupted
        assert report.added == index.stats().images == 4
        rest = build_index(folder, index, runner, batch_size=2)
        assert (rest.unchanged, rest.added, rest.interrupted) == (4, 5, False)


def test_ctrl_c_while_embedding_counts_what_was_being_written(
    home: Path, folder: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = Runner.run, 0

    def interrupted(self: Runner, pixels: NDArray[np.uint8]) -> Outputs:
        nonlocal calls
        calls += 1
        if calls == 3:
            raise KeyboardInterrupt
        return run(self, pixels)

    monkeypatch.setattr(Runner, "run", interrupted)
    with open_for(home, runner) as index:
        report = build_index(folder, index, runner, batch_size=2)
        assert report.interrupted
        assert report.seen == report.added == index.stats().images == 4


def test_reembedding_switches_the_index_when_it_is_complete(home: Path, folder: Path, runner: Runner) -> None:
    with open_for(home, runner) as index:
        build_index(folder, index, runner)
    second = Runner(publish_tiny_model(home, name="second", seed=1))
    with pytest.raises(IndexModelError, match="reembed"):
        open_for(home, second)

    def stop(_: ReembedReport) -> None:
        raise KeyboardInterrupt

    report = reembed(home, second, batch_size=4, progress=stop)
    assert report.interrupted
    assert report.embedded == 4
    assert read_stats(home).model == "tiny:1"
    with open_for(home, runner) as index:  # not complete: the first model still has it
        assert index.stats().vectors == 9
        index.delete("a/0.png")
        save(folder / "b/1.png", 55)
        build_index(folder, index, runner)
    rest = reembed(home, second, batch_size=4)
    assert (rest.total, rest.embedded, rest.skipped) == (6, 6, [])
    with open_for(home, second) as index:
        assert index.stats().vectors == index.stats().images == 9
        vectors = second.run(views(prepare(index.picture("b/1.png"))[np.newaxis])).fc7
        nearest = index.search(vectors, 1)[0][0]
        assert (nearest.key, nearest.distance < 1e-3) == ("b/1.png", True)
    assert reembed(home, second).total == 0
    second.close()


def test_images_without_a_picture_are_listed_when_reembedding(home: Path, folder: Path, runner: Runner) -> None:
    with open_for(home, runner) as index:
        build_index(folder / "a", index, runner, keep_pictures=False)
    second = Runner(publish_tiny_model(home, name="second", seed=1))
    with pytest.raises(FolderError, match="keeps no pictures"):
        reembed(home, second)
    with open_for(home, runner) as index:
        assert index.stats().vectors == 5
        build_index(folder, index, runner)
    report = reembed(home, second)
    assert report.embedded == 9
    assert {reason for _, reason in report.skipped} == {"no picture of it is stored"}
    with open_for(home, second) as index:
        assert (index.stats().images, index.stats().vectors) == (14, 9)
    second.close()


def test_rebuilding_takes_the_index_to_the_new_model(home: Path, folder: Path, runner: Runner) -> None:
    with open_for(home, runner) as index:
        build_index(folder, index, runner)
    second = Runner(publish_tiny_model(home, name="second", seed=1))
    with open_for(home, second, switch=True) as index:
        report = build_index(folder, index, second)
        assert (report.replaced, report.unchanged) == (9, 0)
        assert index.stats().vectors == 9
    second.close()


def test_reembedding_what_is_not_there_says_so(tmp_path: Path, runner: Runner) -> None:
    with pytest.raises(IndexUnavailableError, match="fc7 index build DIR"):
        reembed(tmp_path / "nowhere", runner)
