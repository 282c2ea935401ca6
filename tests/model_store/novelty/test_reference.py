"""Distances and percentiles of images, and the file that holds the reference."""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.errors import ArtifactCorruptError, ArtifactFormatError
from model_store.novelty.fit import MAX_IMAGES, calibrated, fit
from model_store.novelty.reference import NOVELTY_FILE, Novelty, Reference, load_reference
from tests.support.novelty import publish_with_reference, reference_of
from tests.support.tiny_model import publish_tiny_model

Vectors = NDArray[np.float32]


def vectors(count: int, seed: int, shift: float = 0.0) -> Vectors:
    """Return vectors like fc7: sparse, not negative, with few main directions and much small noise."""
    random, common = np.random.default_rng(seed), np.random.default_rng(0)
    mixed = random.normal(shift, 2, (count, 20)) @ common.normal(0, 1, (20, 4096))
    return np.maximum(mixed + random.normal(0, 1, (count, 4096)), 0).astype(np.float32)


def exact(queries: Vectors, training: Vectors, position: int = 10) -> NDArray[np.float64]:
    rows = training.astype(np.float64)
    return np.array([np.sort(np.linalg.norm(rows - query, axis=1))[position - 1] for query in queries])


def with_validation(reference: Reference, queries: Vectors) -> Reference:
    return calibrated(reference, reference.distances_of(queries), np.zeros(len(queries), np.int64), 2)


def test_distances_are_close_to_the_exact_ones_before_and_after_saving() -> None:
    training, queries = vectors(300, 1), np.concatenate([vectors(30, 2), vectors(30, 3, shift=2)])
    reference = with_validation(fit(training), vectors(50, 4))
    expected = exact(queries, training)
    np.testing.assert_allclose(reference.distances_of(queries), expected, rtol=0.03)
    loaded = Reference.of_bytes(reference.to_bytes())
    np.testing.assert_allclose(loaded.distances_of(queries), reference.distances_of(queries), rtol=1e-3)
    np.testing.assert_array_equal(loaded.distances, reference.distances)
    foreign = loaded.measure(vectors(20, 5, shift=4))
    assert all(novelty.unknown(0.95) for novelty in foreign)


def test_one_image_gives_the_same_as_a_batch() -> None:
    reference = with_validation(fit(vectors(40, 1)), vectors(20, 2))
    queries = vectors(8, 3)
    alone = [reference.measure(query[None])[0] for query in queries]
    together = reference.measure(queries)
    assert [each.percentile for each in alone] == [each.percentile for each in together]
    assert [each.distance for each in alone] == pytest.approx([each.distance for each in together], rel=1e-5)


def test_the_percentile_is_the_share_of_validation_images_that_are_nearer() -> None:
    reference = with_validation(fit(vectors(40, 1)), vectors(20, 2))
    distances = reference.distances
    between = (distances[:-1] + distances[1:]) / 2
    assert reference.percentiles_of(between).tolist() == pytest.approx([5.0 * count for count in range(1, 20)])
    assert reference.percentiles_of(np.array([0, distances[0], distances[-1] * 2], np.float32)).tolist() == [0, 0, 100]
    assert reference.distance_at(0.5) == pytest.approx(float(np.median(distances)))


@pytest.mark.parametrize(
    ("percentile", "threshold", "unknown"),
    [(95.0, 0.95, False), (95.1, 0.95, True), (100.0, 1.0, False), (0.0, 0.0, False), (0.2, 0.0, True)],
)
def test_unknown_means_a_percentile_above_the_threshold(percentile: float, threshold: float, unknown: bool) -> None:
    assert Novelty(1.0, percentile).unknown(threshold) is unknown


@pytest.mark.parametrize(
    "training",
    [
        vectors(1, 1),
        vectors(3, 1),
        np.zeros((1, 4096), np.float32),
        np.zeros((200, 4096), np.float32),
        np.repeat(vectors(1, 1), 50, axis=0),
        vectors(30, 1) * np.float32(1e15),
    ],
    ids=["one", "fewer than ten", "one zero", "all zero", "all equal", "huge"],
)
def test_unusual_training_vectors_give_finite_answers(training: Vectors) -> None:
    queries = np.concatenate([training[:2], vectors(5, 2), np.zeros((1, 4096), np.float32)])
    reference = Reference.of_bytes(with_validation(fit(training), queries).to_bytes())
    expected = exact(queries, training, min(10, len(training)))
    np.testing.assert_allclose(reference.distances_of(queries), expected, rtol=0.05, atol=expected.max() * 1e-2)
    assert all(np.isfinite(novelty).all() for novelty in reference.measure(queries))


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_vectors_that_are_not_finite_are_unknown_with_finite_numbers() -> None:
    reference = with_validation(fit(vectors(40, 1)), vectors(20, 2))
    for value in (np.nan, np.inf, 3e38):
        [novelty] = reference.measure(np.full((1, 4096), value, np.float32))
        assert novelty.unknown(0.95)
        json.dumps(novelty, allow_nan=False)
    for broken in (np.zeros((0, 4096), np.float32), np.full((3, 4096), np.nan, np.float32)):
        with pytest.raises(ValueError, match="at least one vector"):
            fit(broken)


def test_the_file_of_the_largest_reference_has_at_most_3_mb() -> None:
    random = np.random.default_rng(0)
    parts: dict[str, Any] = {
        "mean": random.random(4096, np.float32),
        "directions": random.random((128, 4096), np.float32),
        "coordinates": random.random((MAX_IMAGES, 128), np.float32),
        "rests": random.random(MAX_IMAGES, np.float32),
    }
    reference = Reference(**parts, distances=np.zeros(1, np.float32), class_shares=np.zeros(1, np.float32))
    many = random.random(50_000, np.float32)
    complete = calibrated(reference, many, np.zeros(len(many), np.int64), 1000)
    assert len(complete.to_bytes()) <= 3_000_000
    assert complete.distance_at(0.95) == pytest.approx(float(np.quantile(many, 0.95)), abs=1e-3)


def archive(**changes: Any) -> bytes:
    """Return the file of a valid reference with other arrays."""
    content = with_validation(fit(vectors(12, 1)), vectors(5, 2)).to_bytes()
    with np.load(io.BytesIO(content)) as arrays:
        values = {name: arrays[name] for name in arrays.files}
    file = io.BytesIO()
    np.savez(file, **{name: value for name, value in (values | changes).items() if value is not None})
    return file.getvalue()


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as packed:
        packed.writestr("mean.npy", b"\0" * (100 << 20))
    return file.getvalue()


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(lambda: b"", id="empty"),
        pytest.param(lambda: b"PK\x03\x04 no archive", id="no archive"),
        pytest.param(lambda: archive()[:-200], id="truncated"),
        pytest.param(lambda: archive(mean=None), id="array missing"),
        pytest.param(lambda: archive(scale=None), id="scale missing"),
        pytest.param(lambda: archive(other=np.zeros(3)), id="unknown array"),
        pytest.param(lambda: archive(mean=np.zeros(12)), id="wrong shape"),
        pytest.param(lambda: archive(rests=np.zeros(11)), id="other length"),
        pytest.param(lambda: archive(mean=np.full(4096, np.nan)), id="not finite"),
        pytest.param(lambda: archive(distances=np.zeros(0)), id="no distances"),
        pytest.param(lambda: archive(distances=np.array([2.0, 1.0])), id="not ascending"),
        pytest.param(lambda: archive(mean=np.array([{}] * 4096, object)), id="pickled"),
        pytest.param(lambda: archive(mean=np.array("text")), id="text"),
        pytest.param(bomb, id="bomb"),
    ],
)
def test_a_file_that_is_not_a_reference_is_rejected(content: Any) -> None:
    assert Reference.of_bytes(archive())
    with pytest.raises(ValueError):  # noqa: PT011 - the messages of zipfile and NumPy
        Reference.of_bytes(content())


def test_a_version_is_read_with_its_reference(tmp_path: Path) -> None:
    assert load_reference(publish_tiny_model(tmp_path)) is None
    artifact = publish_with_reference(tmp_path, reference_of(range(5), range(5, 9)))
    reference = load_reference(artifact)
    assert reference is not None
    assert (len(reference.rests), len(reference.distances)) == (5, 4)

    path = artifact.path / NOVELTY_FILE
    path.write_bytes(path.read_bytes()[:-1] + b"\0\0")
    with pytest.raises(ArtifactCorruptError, match=NOVELTY_FILE):
        load_reference(artifact)


def test_a_valid_hash_does_not_make_a_file_a_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Reference, "to_bytes", lambda _: b"nothing")
    artifact = publish_with_reference(tmp_path, reference_of(range(5), range(5, 9)))
    with pytest.raises(ArtifactFormatError, match=NOVELTY_FILE):
        load_reference(artifact)
