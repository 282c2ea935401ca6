"""Checks of data sets: flipped labels, copies, leaks, outliers, unreadable files, and the report."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError
from model_store.training.check.check import check_source
from model_store.training.check.classifier import out_of_sample
from model_store.training.check.findings import JudgedLabels, Report
from model_store.training.check.html import render
from model_store.training.check.labels import check_labels
from model_store.training.check.neighbors import nearest
from model_store.training.data.sources import find_source


def clusters(count: int, classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return vectors around one center for each class, and the classes."""
    random = np.random.default_rng(seed)
    labels = np.arange(count) % classes
    vectors = random.normal(size=(classes, 20))[labels] + random.normal(0, 0.5, (count, 20))
    return vectors.astype(np.float32), labels


def test_flipped_labels_come_first() -> None:
    vectors, labels = clusters(400, 4)
    flipped = np.random.default_rng(1).choice(400, 20, replace=False)
    given = labels.copy()
    given[flipped] = (given[flipped] + 1) % 4
    check = check_labels(out_of_sample(vectors, given, 4), given)
    assert len(set(check.order[:20].tolist()) & set(flipped.tolist())) >= 18
    assert check.suspected[flipped].sum() >= 18
    assert check.suspected.sum() <= 40
    assert (check.suggested[flipped] == labels[flipped]).sum() >= 18


def test_probabilities_are_out_of_sample() -> None:
    vectors, _ = clusters(300, 3)
    random_labels = np.random.default_rng(2).integers(0, 3, 300)
    accuracy = (out_of_sample(vectors, random_labels, 3).argmax(1) == random_labels).mean()
    assert accuracy < 0.5  # a classifier that had seen the labels would agree with them
    assert out_of_sample(vectors, random_labels, 3).sum(1) == pytest.approx(1)


def test_a_classifier_that_has_seen_copies_is_not_out_of_sample() -> None:
    random = np.random.default_rng(3)
    vectors = np.repeat(random.normal(size=(150, 200)), 3, axis=0).astype(np.float32)
    groups = np.repeat(np.arange(150), 3)
    labels = np.repeat(random.integers(0, 3, 150), 3)

    def accuracy(groups: np.ndarray | None) -> float:
        return float((out_of_sample(vectors, labels, 3, groups).argmax(1) == labels).mean())

    assert accuracy(None) > 0.9
    assert accuracy(groups) < 0.5
    one_group = np.where(labels == 0, -1, groups)  # it cannot be judged by a classifier that has seen nothing of it
    predicted = out_of_sample(vectors, labels, 3, one_group).argmax(1)
    assert (predicted == labels)[labels == 0].mean() > 0.9
    assert (predicted == labels)[labels != 0].mean() < 0.5


def test_nearest_equals_a_plain_comparison() -> None:
    vectors = np.random.default_rng(0).normal(size=(1_300, 8)).astype(np.float32)
    distances, positions = nearest(vectors, 3)
    plain = np.linalg.norm(vectors[:, None] - vectors[None], axis=2)
    np.fill_diagonal(plain, np.inf)
    assert np.array_equal(positions, np.argsort(plain, axis=1)[:, :3])
    np.testing.assert_allclose(distances, np.sort(plain, axis=1)[:, :3], rtol=1e-3)
    assert nearest(vectors[:1], 3)[0].shape == (1, 0)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Bright and dark pictures in two classes, with one picture of each kind of trouble."""
    random = np.random.default_rng(0)
    for split, count in (("train", 20), ("val", 6)):
        for label, level in (("bright", 150), ("dark", 0)):
            folder = tmp_path / "data" / split / label
            folder.mkdir(parents=True)
            for number in range(count):
                squares = random.integers(0, 100, (8, 8, 3), np.uint8) + level
                Image.fromarray(squares.astype(np.uint8)).resize((300, 300)).save(folder / f"{number}.png")
    train = tmp_path / "data" / "train"
    (train / "dark" / "3.png").rename(train / "bright" / "wrong.png")
    (tmp_path / "data" / "val" / "dark" / "leak.png").write_bytes((train / "dark" / "1.png").read_bytes())
    Image.open(train / "dark" / "2.png").resize((150, 150)).save(train / "bright" / "near.jpg", quality=60)
    (train / "dark" / "broken.jpg").write_bytes(b"x")
    for name in ("<b>", *(f"note {number}" for number in range(5))):
        (train / "dark" / f"{name}.txt").touch()
    Image.new("RGB", (1, 1), (255, 0, 0)).resize((4, 4)).save(train / "dark" / "tiny.png")
    return tmp_path / "data"


def check(data: Path) -> tuple[Report, str]:
    with Decoder() as decoder, ThreadPoolExecutor(2) as workers:
        report = check_source(find_source(data), decoder=decoder, workers=workers, embed=None)
        return report, render(report, decoder)


def test_the_report_names_every_kind_of_trouble(data: Path) -> None:
    report, page = check(data)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["classes"] == {"bright": {"train": 22, "val": 6}, "dark": {"train": 20, "val": 7}}
    assert {item["kind"] for item in found["skipped"]} == {"broken_image", "not_an_image"}
    groups = {
        tuple(sorted(picture["path"] for picture in group["pictures"])): (
            group["exact"],
            group["leaks"],
            group["conflicts"],
        )
        for group in found["groups"]
    }
    assert groups == {
        ("train/dark/1.png", "val/dark/leak.png"): (True, True, False),
        ("train/bright/near.jpg", "train/dark/2.png"): (False, False, True),
    }
    wrong = {item["path"]: item["suggested"] for item in found["likely_wrong_labels"]}
    assert wrong["train/bright/wrong.png"] == "dark"
    assert "train/bright/near.jpg" in found["label_ranking"][:3]
    assert len(wrong) <= 4
    assert [item["path"] for item in found["small"]] == ["train/dark/tiny.png"]
    assert found["outliers"][0]["path"] == "train/dark/tiny.png"
    assert found["label_accuracy"] > 0.9
    assert page.count("<img") >= 6
    assert all(f"/dark/note {number}.txt: Its name does not end" in page for number in range(5))
    assert "http" not in page
    assert "<b>" not in page


def noise(folder: Path, pictures: int, classes: int) -> Path:
    """Write pictures of random squares, whose classes nothing can tell apart."""
    random = np.random.default_rng(0)
    for number in range(pictures):
        file = folder / f"class {number % classes}" / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 255, (8, 8, 3), np.uint8)).resize((64, 64)).save(file)
    return folder


def test_labels_are_not_judged_by_a_classifier_that_knows_nothing(tmp_path: Path) -> None:
    report, page = check(noise(tmp_path / "data", 120, 4))
    found = report.to_dict()
    assert found["label_accuracy"] < found["label_accuracy_required"] == 0.5
    assert found["likely_wrong_labels"] == []
    assert len(found["label_ranking"]) == 24
    assert "Labels cannot be judged" in found["labels_note"]
    assert "fc7 import torchvision --download" in found["labels_note"]
    assert "Likely wrong labels: not judged" in page
    assert "Labels cannot be judged" in page


@pytest.mark.parametrize(
    ("correct", "judged", "majority", "reliable"),
    [
        (640, 1_000, 340, True),  # 56 % is required
        (500, 1_000, 300, False),
        (30, 50, 15, False),  # 53 % is required, but 60 % of 50 could be chance
        (460, 500, 450, False),  # nearly always the same class
        (0, 0, 0, False),
    ],
)
def test_a_classifier_must_be_better_than_the_most_frequent_class(
    correct: int, judged: int, majority: int, *, reliable: bool
) -> None:
    assert JudgedLabels(judged=judged, correct=correct, majority=majority).reliable is reliable


def test_at_most_a_twentieth_of_the_labels_is_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = noise(tmp_path / "data", 400, 2)

    def half_sure(_vectors: object, labels: np.ndarray, classes: int, *_: object) -> np.ndarray:
        right = np.random.default_rng(0).random(len(labels)) < 0.8
        guessed = np.where(right, labels, (labels + 1) % classes)
        return np.where(np.arange(classes) == guessed[:, None], 0.9, 0.1)

    monkeypatch.setattr("model_store.training.check.check.out_of_sample", half_sure)
    report, _ = check(data)
    assert report.labels.reliable
    assert len(report.labels.wrong) == 20
    assert report.labels.wrong == report.labels.ranking[:20]


def test_a_data_set_that_cannot_be_trained_is_reported_not_refused(tmp_path: Path) -> None:
    (tmp_path / "cat").mkdir()
    Image.new("RGB", (64, 64)).save(tmp_path / "cat" / "1.png")
    report, page = check(tmp_path)
    assert "one class" in report.problems[0]
    assert (report.labels.judged, report.outliers, report.groups) == (0, (), ())
    assert "one class" in page
    assert "at least two classes with at least 5 pictures" in page
    (tmp_path / "cat" / "1.png").write_bytes(b"x")
    with pytest.raises(DatasetError, match="None of the pictures"):
        check(tmp_path)
