"""CIFAR-10 from a folder or a tar file: equal images, clear errors, and a cache that belongs to one data set."""

from __future__ import annotations

import io
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.errors import DatasetError
from model_store.training.paper.cifar.data import load_cifar
from tests.support.training.cifar import CLASSES, write_cifar, write_tar


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_cifar(tmp_path / "cifar10", train=3, test=2)


def test_a_tar_file_and_its_folder_give_the_same_data(folder: Path, tmp_path: Path) -> None:
    (folder / "readme.txt").write_text("about")
    unpacked = load_cifar(folder)
    packed = load_cifar(write_tar(folder, tmp_path / "cifar10.tar"))
    assert unpacked.classes == packed.classes == CLASSES
    assert unpacked.hash == packed.hash
    assert unpacked.train.pixels.shape == (9, 32, 32, 3)
    assert unpacked.train.labels.tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert unpacked.test.labels.tolist() == [0, 0, 1, 1, 2, 2]
    np.testing.assert_array_equal(unpacked.train.pixels, packed.train.pixels)
    np.testing.assert_array_equal(packed.test.pixels[3], np.asarray(Image.open(folder / "test/green/0001.png")))


def test_the_cache_is_used_only_for_the_same_content(folder: Path, tmp_path: Path) -> None:
    cache = tmp_path / "new" / "cache"
    Image.new("RGB", (32, 32), "white").save(folder / "train/red/0000.bmp")
    first = load_cifar(folder, cache)
    (cached,) = cache.iterdir()
    written = cached.stat().st_mtime_ns
    again = load_cifar(folder, cache)
    assert cached.stat().st_mtime_ns == written
    np.testing.assert_array_equal(first.train.pixels, again.train.pixels)
    np.testing.assert_array_equal(first.test.labels, again.test.labels)
    assert (again.classes, again.hash) == (first.classes, first.hash)

    Image.new("RGB", (32, 32), "black").save(folder / "train/red/0000.bmp")  # same length, other content
    changed = load_cifar(folder, cache)
    assert changed.hash != first.hash
    assert not changed.train.pixels[6].any()


def test_a_tar_file_is_recognized_by_its_content(folder: Path, tmp_path: Path) -> None:
    packed = write_tar(folder, tmp_path / "cifar10.tar")
    first = load_cifar(packed, tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    written = cached.stat().st_mtime_ns
    again = load_cifar(packed, tmp_path / "cache")
    assert cached.stat().st_mtime_ns == written
    assert (again.classes, again.hash) == (first.classes, first.hash) == (CLASSES, load_cifar(folder).hash)
    np.testing.assert_array_equal(first.test.pixels, again.test.pixels)

    Image.new("RGB", (32, 32), "white").save(folder / "test/red/0001.png")
    changed = load_cifar(write_tar(folder, packed), tmp_path / "cache")
    assert changed.hash != first.hash
    assert (changed.test.pixels[-1] == 255).all()


def test_a_damaged_cache_is_rebuilt(folder: Path, tmp_path: Path) -> None:
    first = load_cifar(folder, tmp_path / "cache")
    (cached,) = (tmp_path / "cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:2000])
    again = load_cifar(folder, tmp_path / "cache")
    np.testing.assert_array_equal(first.train.pixels, again.train.pixels)
    load_cifar(folder, tmp_path / "cache")
    assert cached.stat().st_size > 2000


def test_gray_images_are_converted_to_rgb(folder: Path) -> None:
    Image.new("L", (32, 32), 77).save(folder / "test/blue/0000.png")
    assert (load_cifar(folder).test.pixels[0] == 77).all()


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("empty class", "train/green has no images"),
        ("missing class", "class green is in train/ but not in test/"),
        ("extra class", "class mauve is in test/ but not in train/"),
        ("no test", "no class folders in test/"),
        ("truncated image", "train/red/0001.png is not a readable image"),
        ("empty file", "train/red/0001.png is not a readable image"),
        ("larger image", "train/red/0001.png has 33x32 pixels"),
    ],
)
def test_the_error_names_the_folder_or_file(
    folder: Path, tmp_path: Path, packed: bool, change: str, expected: str
) -> None:
    image = folder / "train/red/0001.png"
    match change:
        case "empty class":
            for path in (folder / "train/green").iterdir():
                path.unlink()
        case "missing class":
            shutil.rmtree(folder / "test/green")
        case "extra class":
            shutil.copytree(folder / "test/green", folder / "test/mauve")
        case "no test":
            shutil.rmtree(folder / "test")
        case "truncated image":
            image.write_bytes(image.read_bytes()[:200])
        case "empty file":
            image.write_bytes(b"")
        case "larger image":
            Image.new("RGB", (33, 32)).save(image)
    source = write_tar(folder, tmp_path / "cifar10.tar") if packed else folder
    with pytest.raises(DatasetError, match=expected) as caught:
        load_cifar(source, tmp_path / "cache")
    assert str(source) in str(caught.value)
    assert not (tmp_path / "cache").exists()


def test_the_error_names_a_source_that_is_missing_or_not_a_tar_file(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.tar does not exist.*train/<class>"):
        load_cifar(tmp_path / "nowhere.tar")
    (tmp_path / "text.tar").write_text("no tar")
    with pytest.raises(DatasetError, match=r"text\.tar is not a complete tar file"):
        load_cifar(tmp_path / "text.tar")
    packed = write_tar(folder, tmp_path / "cut.tar")
    packed.write_bytes(packed.read_bytes()[:9000])
    with pytest.raises(DatasetError, match=r"cut\.tar is not a complete tar file"):
        load_cifar(packed)


def test_a_file_too_large_for_an_image_is_rejected_before_it_is_read(tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "big.tar", "w") as archive:
        member = tarfile.TarInfo("cifar10/train/red/0.png")
        member.size = 2 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(DatasetError, match="2,097,152 bytes"):
        load_cifar(tmp_path / "big.tar")
