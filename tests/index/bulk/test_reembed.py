"""Re-embedding an index for another model from the stored pictures, with real runners over tiny models."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.bulk.folder import build_index
from index.bulk.reembed import reembed
from index.bulk.report import ReembedReport
from index.errors import FolderError, IndexModelError, IndexUnavailableError
from index.factory import read_stats
from model_store.image import prepare, views
from model_store.runtime.runner import Runner
from tests.index.bulk.helpers import open_index, save_image
from tests.support.tiny_model import publish_tiny_model


def test_reembed_switches_the_index_when_all_vectors_exist(home: Path, folder: Path, runner: Runner) -> None:
    with open_index(home, runner) as index:
        build_index(folder, index, runner)
    second = Runner(publish_tiny_model(home, name="second", seed=1))
    with pytest.raises(IndexModelError, match="reembed"):
        open_index(home, second)

    def stop(_: ReembedReport) -> None:
        raise KeyboardInterrupt

    report = reembed(home, second, batch_size=4, progress=stop)
    assert report.interrupted
    assert report.embedded == 4
    assert read_stats(home).model == "tiny:1"
    with open_index(home, runner) as index:  # not complete: search still uses the first model
        assert index.stats().vectors == 9
        index.delete("a/0.png")
        save_image(folder / "b/1.png", 55)
        build_index(folder, index, runner)
    rest = reembed(home, second, batch_size=4)
    assert (rest.total, rest.embedded, rest.skipped) == (6, 6, [])
    with open_index(home, second) as index:
        assert index.stats().vectors == index.stats().images == 9
        vectors = second.run(views(prepare(index.picture("b/1.png"))[np.newaxis])).fc7
        nearest = index.search(vectors, 1)[0][0]
        assert (nearest.key, nearest.distance < 1e-3) == ("b/1.png", True)
    assert reembed(home, second).total == 0
    second.close()


def test_reembed_lists_images_without_a_stored_picture(home: Path, folder: Path, runner: Runner) -> None:
    with open_index(home, runner) as index:
        build_index(folder / "a", index, runner, keep_pictures=False)
    second = Runner(publish_tiny_model(home, name="second", seed=1))
    with pytest.raises(FolderError, match="stores no pictures"):
        reembed(home, second)
    with open_index(home, runner) as index:
        assert index.stats().vectors == 5
        build_index(folder, index, runner)
    report = reembed(home, second)
    assert report.embedded == 9
    assert {reason for _, reason in report.skipped} == {"its picture is not stored"}
    with open_index(home, second) as index:
        assert (index.stats().images, index.stats().vectors) == (14, 9)
    second.close()


def test_reembed_without_an_index_raises(tmp_path: Path, runner: Runner) -> None:
    with pytest.raises(IndexUnavailableError, match="fc7 index build DIR"):
        reembed(tmp_path / "nowhere", runner)
