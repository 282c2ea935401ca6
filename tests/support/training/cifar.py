"""Small data sets in the layout of CIFAR-10: 32x32 images of three classes that differ in color."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from model_store.training.paper.cifar.data import CifarData, Images

CLASSES = ("blue", "green", "red")


def write_cifar(root: Path, train: int = 8, test: int = 4, seed: int = 0) -> Path:
    """Write `root`/{train,test}/{blue,green,red}/<n>.png, with `train` and `test` images per class."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for index, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(_image(random, 2 - index)).save(folder / f"{number:04}.png")
    return root


def write_tar(folder: Path, path: Path) -> Path:
    """Pack `folder` as cifar10/ into the tar file `path`, including folder entries, and return `path`."""
    with tarfile.open(path, "w") as archive:
        archive.add(folder, "cifar10")
    return path


def small_cifar(train: int = 60, test: int = 30, seed: int = 0) -> CifarData:
    """Return a data set with `train` and `test` images, in memory."""
    random = np.random.default_rng(seed)

    def images(count: int) -> Images:
        labels = np.arange(count, dtype=np.int64) % len(CLASSES)
        return Images(np.stack([_image(random, 2 - int(label)) for label in labels]), labels)

    return CifarData(images(train), images(test), CLASSES, hash=f"small-{train}-{test}-{seed}")


def _image(random: np.random.Generator, channel: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    pixels = random.integers(0, 100, (32, 32, 3), dtype=np.uint8)
    pixels[..., channel] += 120
    return pixels
