"""The parts of the search benchmark: true neighbors, recall, simulated rows, goals, and a small run."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.search.__main__ import main
from benchmarks.search.adding import measure_adding
from benchmarks.search.measure import Point, prepare, recall
from benchmarks.search.report import goals
from benchmarks.search.vectors import Vectors, embed_photographs, nearest, read_vectors, rows_of
from tests.support import pictures
from tests.support.tiny_model import publish_tiny_model

POINT = Point("fc7 exact", 100_000, 1.0, None, 40.0, 50.0, 20.0, 8200.0, 1.0, 900.0, 200)
SERVED = replace(POINT, name="fc7 fast, 200 compared exactly (as served)", recall=0.96, p50=4.0, bytes=146.0)


def random_rows(n: int, seed: int = 0) -> NDArray[np.float16]:
    return np.maximum(np.random.default_rng(seed).standard_normal((n, 4096)), 0).astype(np.float16)


@pytest.fixture(scope="module")
def vectors() -> Vectors:
    return Vectors(random_rows(300), random_rows(20, 1), np.arange(300) % 3)


def test_recall_is_the_share_of_true_neighbors_in_any_order() -> None:
    truth = np.array([[1, 2], [3, 4]])
    assert recall(np.array([[2, 1], [4, 3]]), truth) == 1
    assert recall(np.array([[9, 1], [9, 8]]), truth) == 0.25
    assert recall(np.array([[9, 9, 2, 1], [9, 8, 7, 4]]), truth) == 0.75
    # -1 means that a library found fewer neighbors.
    assert recall(np.array([[1, -1], [-1, -1]]), truth) == 0.25


def test_true_neighbors_are_found_over_several_blocks(vectors: Vectors) -> None:
    rows = np.concatenate(list(rows_of(vectors, 2500))).astype(np.float64)
    found = nearest(vectors, 2500, 10)
    for query, numbers in zip(vectors.queries.astype(np.float64), found, strict=True):
        assert numbers.tolist() == np.argsort(((rows - query) ** 2).sum(axis=1))[:10].tolist()


def test_simulated_rows_follow_the_real_ones_and_mix_rows_of_one_class(vectors: Vectors) -> None:
    short, long = (np.concatenate(list(rows_of(vectors, size))) for size in (200, 2000))
    assert np.array_equal(short, vectors.rows[:200])
    assert np.array_equal(long[:300], vectors.rows)
    assert long.shape == (2000, 4096)
    assert np.array_equal(long, np.concatenate(list(rows_of(vectors, 2000))))
    # If all values of a row are its class number, a mixture within a class has that number again.
    marked = replace(vectors, rows=np.repeat(vectors.classes[:, np.newaxis], 4096, axis=1).astype(np.float16))
    mixed = np.concatenate(list(rows_of(marked, 900)))[300:]
    assert np.allclose(mixed, np.round(mixed), atol=2e-3)
    assert {0, 1, 2} == set(np.round(mixed[:, 0]).astype(int).tolist())


def test_vectors_are_read_with_given_or_held_out_queries(tmp_path: Path) -> None:
    rows = random_rows(30)
    np.savez(tmp_path / "base-0.npz", v=rows[:20], y=np.arange(20))
    np.save(tmp_path / "base-1.npy", rows[20:])
    read = read_vectors(tmp_path, 4)
    assert np.array_equal(read.rows, rows[:26])
    assert np.array_equal(read.queries, rows[26:])
    assert read.classes.tolist() == [*range(20), *[-1] * 6]
    np.save(tmp_path / "query-0.npy", random_rows(9, 2))
    read = read_vectors(tmp_path, 3)
    assert np.array_equal(read.rows, rows)
    assert np.array_equal(read.queries, random_rows(9, 2)[[0, 4, 8]])
    np.save(tmp_path / "base-2.npy", rows[:, :100])
    with pytest.raises(SystemExit, match=r"base-2.*4096"):
        read_vectors(tmp_path, 3)


def test_goals_are_met_missed_or_not_measured() -> None:
    def goals_met(points: list[Point], adding: dict[str, float] | None) -> list[bool | None]:
        return [each for _, _, each in goals(points, adding)]

    good = {"embedded_per_s": 100.0, "added_per_s": 91.0}
    assert goals_met([POINT, SERVED], good) == [True] * 5
    assert goals_met([replace(POINT, p50=61), SERVED], None) == [False, True, True, True, None]
    assert goals_met([POINT, replace(SERVED, recall=0.94)], None)[1] is False
    assert goals_met([POINT, replace(SERVED, p50=10.5)], None)[2] is False
    assert goals_met([POINT, replace(SERVED, bytes=161)], None)[3] is False
    assert goals_met([POINT, SERVED], {"embedded_per_s": 100.0, "added_per_s": 89.0})[4] is False
    # Other sizes, and numbers of candidates that the service does not use, do not count.
    others = [replace(POINT, size=10_000), replace(SERVED, name="fc7 fast, 400 compared exactly")]
    assert goals_met(others, None) == [None] * 5


def test_small_run_measures_every_mode_and_reuses_prepared_data(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, work, out = tmp_path / "vectors", tmp_path / "work", tmp_path / "out.json"
    folder.mkdir()
    np.save(folder / "base.npy", random_rows(260))
    arguments = [str(folder), "--sizes", "280", "--queries", "20", "--others", "", "--bits", "0", "--work", str(work)]
    main([*arguments, "--prepare-only"])
    made = (work / "280" / "truth.npz").stat().st_mtime_ns
    main([*arguments, "--json", str(out)])
    assert (work / "280" / "truth.npz").stat().st_mtime_ns == made
    results = json.loads(out.read_text())
    points = {point["name"]: point for point in results["points"]}
    assert points["fc7 exact"]["recall"] == 1
    assert points["fc7 fast, 200 compared exactly (as served)"]["recall"] > 0.9
    # So few vectors stay in memory: only full segments are mapped from files.
    in_memory = points["fc7 exact"]["bytes"]
    assert in_memory < points["fc7 fast, 40 compared exactly"]["bytes"] < 1.05 * in_memory
    assert results["writes"]["280"]["adds_per_s"] > 0
    assert "not measured" in capsys.readouterr().out
    np.save(folder / "base.npy", random_rows(260, 7))
    with pytest.raises(SystemExit, match="prepared with other vectors"):
        main(arguments)


def test_photographs_are_embedded_and_added_to_the_index(tmp_path: Path) -> None:
    source, home = tmp_path / "photographs", tmp_path / "home"
    source.mkdir()
    for number in range(3):
        (source / f"{number}.jpg").write_bytes(pictures.jpeg(seed=number))
    publish_tiny_model(home)
    made = embed_photographs(source, home, 40, 5)
    assert made.rows.shape == (40, 4096)
    assert len(np.unique(np.concatenate([made.rows, made.queries]), axis=0)) == 45
    prepare(made, 40, tmp_path / "40", bits=0, epochs=1, others=())
    rates = measure_adding(tmp_path / "40" / "home", home, source, rounds=1)
    assert rates["embedded_per_s"] > 0
    assert rates["added_per_s"] > 0
