"""CIFAR-10's layout in small: 32x32 pictures of three classes that differ in colour, as a folder and as a tar."""

from __future__ import annotations

import tarfile
from pathlib import Path

import numpy as np
from PIL import Image

from model_store.training.paper.cifar.data import CifarData, Pictures

CLASSES = ("blue", "green", "red")


def write_cifar(root: Path, train: int = 8, test: int = 4, seed: int = 0) -> Path:
    """Write `root`/{train,test}/{blue,green,red}/<n>.png, so many a class, and return `root`."""
    random = np.random.default_rng(seed)
    for split, count in (("train", train), ("test", test)):
        for index, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(_picture(random, 2 - index)).save(folder / f"{number:04}.png")
    return root


def write_tar(folder: Path, path: Path) -> Path:
    """Pack `folder` as cifar10/... into the tar `path`, folders too, and return it."""
    with tarfile.open(path, "w") as archive:
        archive.add(folder, "cifar10")
    return path


def small_cifar(train: int = 60, test: int = 30, seed: int = 0) -> CifarData:
    """Return so many pictures of three classes, in memory."""
    random = np.random.default_rng(seed)

    def pictures(count: int) -> Pictures:
        labels = np.arange(count, dtype=np.int64) % len(CLASSES)
        return Pictures(np.stack([_picture(random, 2 - int(label)) for label in labels]), labels)

    return CifarData(pictures(train), pictures(test), CLASSES, hash=f"small-{train}-{test}-{seed}")


def _picture(random: np.random.Generator, channel: int) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    pixels = random.integers(0, 100, (32, 32, 3), dtype=np.uint8)
    pixels[..., channel] += 120
    return pixels
