"""Building an index from a folder, with a real runner over a tiny model."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from index.bulk.add import PreparedFile, prepare_file
from index.bulk.folder import build_index
from index.bulk.report import BuildReport
from index.bulk.sources import read_file
from index.errors import FolderError
from index.records import MAX_KEY_LENGTH, AddOutcome, NewImage
from model_store.decoder.limits import DecodeLimits
from model_store.errors import DatasetError
from model_store.image import prepare, views
from model_store.image_files import SkipKind
from model_store.runtime.runner import Outputs, Runner
from tests.index.bulk.helpers import open_index, save_image
from tests.support.server import wait_until
from tests.support.tiny_model import publish_tiny_model


def test_folder_is_indexed_and_each_image_finds_itself(home: Path, folder: Path, runner: Runner) -> None:
    calls: list[int] = []
    with open_index(home, runner) as index:
        report = build_index(folder, index, runner, batch_size=4, progress=lambda report: calls.append(report.seen))
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
        save_image(folder / "b/3.png", 77)
        save_image(folder / "new.png", 78)
        third = build_index(folder, index, runner)
        assert (third.added, third.replaced, third.unchanged) == (1, 1, 8)


def test_unreadable_files_are_listed_with_reasons_and_the_rest_is_added(
    home: Path, folder: Path, runner: Runner
) -> None:
    (folder / "text.jpg").write_text("not an image")
    (folder / "empty.png").write_bytes(b"")
    cut = (folder / "a/0.png").read_bytes()
    (folder / "a/cut.png").write_bytes(cut[: len(cut) // 2])
    save_image(folder / ("x" * 120) / ("y" * 100 + ".png"), 1)
    with open_index(home, runner) as index:
        report = build_index(folder, index, runner, batch_size=2, limits=DecodeLimits(pixels=100_000))
        assert (report.total, report.seen, report.added) == (13, 13, 9)
        reasons = {Path(item.path).name[:9]: item.reason for item in report.skipped}
        assert set(reasons) == {"text.jpg", "empty.png", "cut.png", "y" * 9}
        assert "225 characters" in reasons["y" * 9]
        assert index.stats().images == 9
        assert build_index(folder, index, runner, limits=DecodeLimits(pixels=1000)).unchanged == 9


def test_folder_without_images_raises(home: Path, tmp_path: Path, runner: Runner) -> None:
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "notes.txt").write_text("x")
    with open_index(home, runner) as index:
        with pytest.raises(FolderError, match="none has no images"):
            build_index(tmp_path / "none", index, runner)
        with pytest.raises(DatasetError, match="missing"):
            build_index(tmp_path / "missing", index, runner)


def test_ctrl_c_keeps_committed_images_and_the_next_call_resumes(home: Path, folder: Path, runner: Runner) -> None:
    def interrupt(report: BuildReport) -> None:
        if report.seen == 4:
            raise KeyboardInterrupt

    with open_index(home, runner) as index:
        report = build_index(folder, index, runner, batch_size=2, progress=interrupt)
        assert report.interrupted
        assert report.added == index.stats().images == 4
        rest = build_index(folder, index, runner, batch_size=2)
        assert (rest.unchanged, rest.added, rest.interrupted) == (4, 5, False)


def test_ctrl_c_while_embedding_counts_the_running_commit(
    home: Path, folder: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, calls = Runner.run, itertools.count(1)

    def interrupted(self: Runner, pixels: NDArray[np.uint8], *, all_cores: bool) -> Outputs:
        if next(calls) == 3:
            wait_until(lambda: index.stats().images == 4)  # committed, but not reported before this run ends
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the main thread gets the signal before there is a result
        return run(self, pixels, all_cores=all_cores)

    monkeypatch.setattr(Runner, "run", interrupted)
    with open_index(home, runner) as index:
        report = build_index(folder, index, runner, batch_size=2, workers=1)
        assert report.interrupted
        assert report.seen == report.added == index.stats().images == 4


def test_ctrl_c_does_not_wait_for_a_whole_batch(
    home: Path, folder: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    files: list[Path] = []

    def interrupted(path: Path) -> bytes:
        files.append(path)
        if len(files) == 2:
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.2)  # the main thread gets the signal before this file is decoded
        return read_file(path)

    monkeypatch.setattr("index.bulk.folder.read_file", interrupted)
    with open_index(home, runner) as index:
        report = build_index(folder, index, runner, workers=1)
        assert (report.interrupted, report.seen, index.stats().images) == (True, 0, 0)
    assert len(files) == 2


def test_pixels_are_freed_before_the_commit(
    home: Path, folder: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    pixels: dict[str, weakref.ref[NDArray[np.uint8]]] = {}
    freed: list[bool] = []

    def watched(*arguments: Any, **options: Any) -> PreparedFile | None:
        file = prepare_file(*arguments, **options)
        assert file is not None
        pixels[file.key] = weakref.ref(file.image.pixels)
        return file

    monkeypatch.setattr("index.bulk.folder.prepare_file", watched)
    with open_index(home, runner) as index:
        add_many = index.add_many

        def add(images: Sequence[NewImage]) -> Sequence[AddOutcome]:
            freed.extend(pixels[str(image.key)]() is None for image in images)
            return add_many(images)

        monkeypatch.setattr(index, "add_many", add)
        assert build_index(folder, index, runner, batch_size=3).added == 9
    assert freed == [True] * 9


def test_files_whose_key_is_too_long_are_listed_and_the_rest_is_added(home: Path, folder: Path, runner: Runner) -> None:
    save_image(folder / ("x" * 100 + ".png"), 1)
    prefix = "p" * (MAX_KEY_LENGTH - 50)
    with open_index(home, runner) as index:
        report = build_index(folder, index, runner, key_prefix=prefix)
        assert (report.total, report.seen, report.added) == (10, 10, 9)
        [skipped] = report.skipped
        assert (skipped.kind, skipped.path) == (SkipKind.INVALID_KEY, str(folder / ("x" * 100 + ".png")))
        assert build_index(folder, index, runner, key_prefix="p" * MAX_KEY_LENGTH).added == 0


def test_batches_are_embedded_at_the_same_time(
    home: Path, folder: Path, runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, both = Runner.run, threading.Barrier(2, timeout=30)
    first_two = itertools.count()

    def waiting(self: Runner, pixels: NDArray[np.uint8], *, all_cores: bool) -> Outputs:
        if next(first_two) < 2:
            both.wait()  # raises, unless another thread is here too
        return run(self, pixels, all_cores=all_cores)

    monkeypatch.setattr(Runner, "run", waiting)
    with open_index(home, runner) as index:
        assert build_index(folder, index, runner, batch_size=2).added == 9
        keys = [image.key for image in index.list(9).images]
    assert keys == sorted(keys)


def test_rebuild_for_another_model_replaces_all_vectors(home: Path, folder: Path, runner: Runner) -> None:
    with open_index(home, runner) as index:
        build_index(folder, index, runner)
    second = Runner(publish_tiny_model(home, name="second", seed=1))
    with open_index(home, second, switch=True) as index:
        report = build_index(folder, index, second)
        assert (report.replaced, report.unchanged) == (9, 0)
        assert index.stats().vectors == 9
    second.close()
