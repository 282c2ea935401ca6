"""The map of an index: PCA, t-SNE, new images, files, and indexes that are too small for a map."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from index.filters import parse_where
from index.projection.index_map import Method
from index.projection.maps import MapPage, Maps
from index.projection.plane import Plane
from index.projection.tsne import tsne
from index.records import NewImage
from model_store.errors import MissingExtraError
from tests.index.helpers import Opener, image, index_options, open_index
from tests.index.test_suggestions import cluster, entry


def images(count: int = 30) -> list[NewImage]:
    """Return images of three groups."""
    rows = np.concatenate([cluster(group, count // 3) for group in (1, 2, 3)])
    return [entry(f"k{n:04}", row, label=f"group {3 * n // count}") for n, row in enumerate(rows)]


def compactness(page: MapPage) -> float:
    """Return the mean distance within groups, relative to that of all images."""
    distances = np.linalg.norm(page.positions[:, None] - page.positions[None], axis=2)
    same = np.array(page.labels)[:, None] == np.array(page.labels)[None]
    return float(distances[same].mean() / distances.mean())


def test_similar_images_are_near_each_other_and_pages_are_complete(open_index: Opener, tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many(images())
        maps = Maps(tmp_path / "maps")
        whole = maps.page(index, "label", 1000)
        assert (whole.method, whole.images, whole.more, whole.missing) == (Method.PCA, 30, False, 0)
        assert compactness(whole) < 0.3
        assert np.abs(whole.positions).max() == pytest.approx(1, abs=0.05)
        first = maps.page(index, "label", 20)
        second = maps.page(index, "label", 20, first.last)
        assert first.more
        assert not second.more
        assert first.keys + second.keys == whole.keys == sorted(whole.keys)
        assert (np.concatenate([first.positions, second.positions]) == whole.positions).all()
        some = maps.page(index, "label", 1000, where=parse_where(['label:"group 1"']))
        assert some.keys == whole.keys[10:20]
        assert (some.positions == whole.positions[10:20]).all()
        assert set(maps.page(index, "nothing", 10).labels) == {None}


@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_few_or_equal_images_have_a_map(open_index: Opener, tmp_path: Path, count: int) -> None:
    with open_index(tmp_path) as index:
        if count:
            same = cluster(1, 1)[0] if count == 5 else None
            index.add_many([entry(f"k{n}", cluster(n, 1)[0] if same is None else same) for n in range(count)])
        maps = Maps(tmp_path / "maps")
        page = maps.page(index, "label", 100)
        assert (len(page.keys), page.positions.shape) == (count, (count, 2))
        assert np.isfinite(page.positions).all()
        assert count < 5 or np.abs(page.positions).max() < 1e-3
        made = maps.compute(index, Method.PCA)
        assert (made is None) == (count == 0)


def test_new_replaced_and_deleted_images_follow(tmp_path: Path) -> None:
    entries = images()
    with open_index(tmp_path) as index:
        index.add_many(entries[:-1])
        maps = Maps(tmp_path / "maps")
        before = maps.page(index, "label", 1000)
        index.add_many([entries[-1]])
        index.delete("k0000")
        index.add_many([NewImage("k0001", "a" * 64, 10, 5, 5, None, None, cluster(3, 1)[0])])
        after = maps.page(index, "label", 1000)
        place = dict(zip(after.keys, after.positions, strict=True))
        assert after.keys == [f"k{n:04}" for n in range(1, 30)]
        assert (after.positions[1:28] == before.positions[2:29]).all()  # the others have not moved
        for key in ("k0001", "k0029"):  # now both look like the third group
            assert np.linalg.norm(place[key] - place["k0025"]) < 0.3


def test_a_map_on_disk_is_used_until_it_is_deleted_damaged_or_of_another_model(tmp_path: Path) -> None:
    folder = tmp_path / "maps"
    with open_index(tmp_path) as index:
        index.add_many(images())
        made = Maps(folder).compute(index, Method.PCA)
        assert made is not None
        [file] = folder.iterdir()
        reader = Maps(folder)
        assert reader.page(index, "label", 100).created == made.created
        again = Maps(folder).compute(index, Method.PCA)
        assert again is not None
        assert reader.page(index, "label", 100).created == again.created  # written meanwhile
        for damage in (lambda: file.write_bytes(file.read_bytes()[:1000]), lambda: file.write_text("{}"), file.unlink):
            damage()
            page = reader.page(index, "label", 100)
            assert (len(page.keys), page.created > again.created) == (30, True)
        Maps(folder).compute(index, Method.PCA)
    options = index_options(fingerprint="e" * 64, model="solar:2", switch=True)
    with open_index(tmp_path, fingerprint=options.fingerprint, model=options.model, switch=True) as other:
        other.add_many([image("z", 1)])
        assert Maps(folder).page(other, "label", 100).keys == ["z"]


def test_the_axes_are_fitted_again_when_the_index_has_doubled(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        entries = images(90)
        index.add_many(entries[:4])
        maps = Maps(tmp_path / "maps")
        maps.page(index, "label", 1000)
        index.add_many(entries)
        maps.page(index, "label", 1000)
        assert compactness(maps.page(index, "label", 1000)) < 0.3


def test_a_stopped_request_returns_what_was_placed_and_the_next_one_continues(tmp_path: Path) -> None:
    with open_index(tmp_path) as index:
        index.add_many(images())
        maps = Maps(tmp_path / "maps")
        asked = 0

        def stopped() -> bool:
            nonlocal asked
            asked += 1
            return asked > 2

        page = maps.page(index, "label", 1000, stopped=stopped)
        assert (page.keys, page.missing, page.images) == ([], 30, 30)
        assert maps.page(index, "label", 1000).missing == 0
        assert maps.compute(index, Method.PCA, stopped=lambda: True) is None
        assert not (tmp_path / "maps").exists()


def test_without_opentsne_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openTSNE", None)
    with pytest.raises(MissingExtraError, match=r"fc7\[map\]"):
        tsne(np.zeros((20, 5), np.float32))


def test_tsne_separates_groups_and_places_new_images_among_their_own(tmp_path: Path) -> None:
    pytest.importorskip("openTSNE")
    entries = images(60)
    with open_index(tmp_path) as index:
        index.add_many(entries[:-1])
        shares: list[float] = []
        made = Maps(tmp_path / "maps").compute(index, Method.TSNE, progress=shares.append)
        assert made is not None
        assert (made.method, shares[-1]) == (Method.TSNE, 1.0)
        index.add_many([entries[-1]])
        maps = Maps(tmp_path / "maps")
        page = maps.page(index, "label", 1000)
        assert (page.method, len(page.keys)) == (Method.TSNE, 60)
        assert compactness(page) < 0.5
        nearest = np.argsort(np.linalg.norm(page.positions - page.positions[-1], axis=1))[1:6]
        assert {page.labels[number] for number in nearest} == {"group 2"}
        stops = iter([False] * 4)
        assert Maps(tmp_path / "other").compute(index, Method.TSNE, lambda: next(stops, True)) is None
    for rows in (np.zeros((50, 5), np.float32), np.eye(4, dtype=np.float32)):
        assert tsne(rows) is None  # nothing to optimize
    copies = np.repeat(np.random.default_rng(0).standard_normal((5, 50), np.float32), 20, axis=0)
    positions = tsne(copies)
    assert positions is not None
    assert np.isfinite(positions).all()


def test_a_plane_of_one_vector_has_two_axes() -> None:
    plane = Plane.fit(cluster(1, 1).astype(np.float16))
    assert plane.project(cluster(1, 3).astype(np.float16)).shape == (3, 2)
