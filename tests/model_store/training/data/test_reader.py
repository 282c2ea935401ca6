"""Reading a data set: pixels, statistics, skipped files, copies and errors."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError
from model_store.image import prepare
from model_store.image_files import SkipKind
from model_store.training.data.dataset import IMAGE_BYTES, Dataset
from model_store.training.data.reader import open_dataset
from model_store.training.data.sources import find_source
from tests.support.training.class_folders import write_class_folders


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_class_folders(tmp_path / "data", train=3, val=2)


def opened(root: Path, workers: ThreadPoolExecutor, budget: int = 1 << 30) -> Dataset:
    return open_dataset(find_source(root), memory_budget=budget, workers=workers, decoder=Decoder())


def test_classes_are_folder_names_in_alphabetical_order(root: Path, workers: ThreadPoolExecutor) -> None:
    for split in ("train", "val"):
        (root / split / "red").rename(root / split / "a, red one")
    dataset = opened(root, workers)
    assert dataset.classes == ("a, red one", "blue", "green")
    assert dataset.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert dataset.class_counts().tolist() == [3, 3, 3]
    folders = [image.file.parent.name for image in dataset.val.images]
    assert folders == ["a, red one"] * 2 + ["blue"] * 2 + ["green"] * 2


@pytest.mark.parametrize("images_in_budget", [15, 14])
def test_pixels_are_prepared_images_in_memory_or_not(
    root: Path, workers: ThreadPoolExecutor, images_in_budget: int
) -> None:
    dataset = opened(root, workers, images_in_budget * IMAGE_BYTES)
    assert dataset.train.in_memory is (images_in_budget == 15)
    positions = np.array([7, 0, 7])
    expected = [prepare(dataset.train.images[position].read()) for position in positions]
    np.testing.assert_array_equal(dataset.train.pixels(positions), expected)


def test_images_in_memory_are_read_once(root: Path, workers: ThreadPoolExecutor) -> None:
    dataset = opened(root, workers)
    before = dataset.train.pixels(np.arange(9))
    shutil.rmtree(root)
    np.testing.assert_array_equal(dataset.train.pixels(np.arange(9)), before)


def test_an_image_that_is_removed_during_training_is_an_error(root: Path, workers: ThreadPoolExecutor) -> None:
    dataset = opened(root, workers, budget=0)
    shutil.rmtree(root)
    with pytest.raises(DatasetError, match="--resume"):
        dataset.train.pixels(np.array([0]))


def test_statistics_are_computed_from_the_training_set(root: Path, workers: ThreadPoolExecutor) -> None:
    dataset = opened(root, workers)
    pixels = dataset.train.pixels(np.arange(9)).astype(np.float64)
    statistics = dataset.statistics
    np.testing.assert_allclose(statistics.mean, pixels.mean(0), rtol=1e-6)
    assert statistics.mean.dtype == np.float32
    covariance = np.cov(pixels.reshape(-1, 3).T, bias=True)
    vectors, values = statistics.eigenvectors.astype(np.float64), statistics.eigenvalues
    np.testing.assert_allclose(vectors @ np.diag(values) @ vectors.T, covariance, rtol=1e-4, atol=1e-2)
    assert values.tolist() == sorted(values.tolist(), reverse=True)


def test_gray_images_have_no_negative_eigenvalues(root: Path, workers: ThreadPoolExecutor) -> None:
    for path in root.rglob("*.png"):
        Image.open(path).convert("L").save(path)
    values = opened(root, workers).statistics.eigenvalues
    assert values[0] > 1
    assert (values >= 0).all()


def test_unreadable_files_are_listed_with_the_reason(root: Path, workers: ThreadPoolExecutor) -> None:
    broken = root / "train" / "red" / "0.png"
    broken.write_bytes(broken.read_bytes()[:200])
    (root / "val" / "red" / "note.jpg").write_text("no picture")
    (root / "val" / "red" / "labels.txt").write_text("no picture either")
    dataset = opened(root, workers)
    assert {Path(item.path).name: Path(item.path).parent.parent.name for item in dataset.skipped} == {
        "0.png": "train",
        "note.jpg": "val",
        "labels.txt": "val",
    }
    assert all(item.reason for item in dataset.skipped)
    assert (len(dataset.train), len(dataset.val)) == (8, 6)
    assert broken not in [image.file for image in dataset.train.images]
    positions = np.arange(8)
    expected = [prepare(image.read()) for image in dataset.train.images]
    np.testing.assert_array_equal(dataset.train.pixels(positions), expected)


def test_names_that_are_not_utf8_are_escaped_and_other_files_are_reported(
    root: Path, workers: ThreadPoolExecutor
) -> None:
    for split in ("train", "val"):
        (root / split / "red").rename(root / split / os.fsdecode(b"r\xf6d"))
        (root / split / "__MACOSX").mkdir()
    folder = root / "train" / os.fsdecode(b"r\xf6d")
    (folder / "0.png").rename(folder / os.fsdecode(b"\xfc.png"))
    (folder / "loop").symlink_to(root)
    (root / "train" / "notes.txt").write_text("x")
    dataset = opened(root, workers)
    assert dataset.classes == ("blue", "green", "r\\xf6d")
    assert "train/r\\xf6d/\\xfc.png" in {image.name for image in dataset.train.images}
    assert Counter(item.kind for item in dataset.skipped) == {
        SkipKind.HIDDEN: 2,
        SkipKind.LINK: 1,
        SkipKind.NOT_AN_IMAGE: 1,
    }
    assert json.dumps([item.to_dict() for item in dataset.skipped]).encode()
    assert len(find_source(root).digest()) == 64


def test_a_class_with_only_broken_images_is_an_error(root: Path, workers: ThreadPoolExecutor) -> None:
    for path in (root / "train" / "green").iterdir():
        path.write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"3 images of the class 'green' in .*train/green can be read"):
        opened(root, workers)


def test_an_image_in_both_splits_is_detected_by_its_content(root: Path, workers: ThreadPoolExecutor) -> None:
    twin = root / "val" / "blue" / "another name.png"
    twin.write_bytes((root / "train" / "red" / "1.png").read_bytes())
    assert opened(root, workers).duplicates == ((str(root / "train" / "red" / "1.png"), str(twin)),)


def test_the_hash_depends_on_contents_names_and_splits_but_not_on_the_folder(
    root: Path, workers: ThreadPoolExecutor
) -> None:
    first = opened(root, workers).hash
    moved = root.rename(root.with_name("moved"))
    assert opened(moved, workers).hash == first
    picture = moved / "train" / "red" / "0.png"
    picture.rename(picture.with_name("9.png"))
    renamed = opened(moved, workers).hash
    picture.with_name("9.png").write_bytes((moved / "val" / "red" / "0.png").read_bytes())
    assert len({first, renamed, opened(moved, workers).hash}) == 3


def test_reading_reports_every_image(root: Path, workers: ThreadPoolExecutor) -> None:
    reported: list[tuple[int, int]] = []
    with Decoder() as decoder:
        open_dataset(
            find_source(root),
            memory_budget=0,
            workers=workers,
            decoder=decoder,
            progress=lambda done, total: reported.append((done, total)),
        )
    assert reported == [(done, 15) for done in range(1, 16)]
