"""A miniature ILSVRC-2010 or 2012, in the layout of the distribution.

python -m tests.support.training.ilsvrc DIR            1,000 classes, for the commands of docs/imagenet.md
python -m tests.support.training.ilsvrc DIR --year 2010
"""

from __future__ import annotations

import argparse
import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from scipy.io import savemat

# (ILSVRC id, WordNet id, words). The ILSVRC ids are not in the order of the WordNet ids; two classes have equal words.
SYNSETS = ((1, "n03126707", "crane"), (2, "n01440764", "tench, Tinca tinca"), (3, "n02012849", "crane"))
LABELS = ("tench, Tinca tinca", "crane (n02012849)", "crane (n03126707)")
VAL = (3, 1, 2, 2, 3)  # the ground truth
TEST = (2, 3)
TRAIN = 2  # images per class
CLASSES = 1_000  # of the challenge


def picture(number: int) -> bytes:
    """Return a JPEG whose gray level depends on `number`."""
    file = io.BytesIO()
    Image.fromarray(np.full((60, 80, 3), 10 + 12 * number, np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


def textured_picture(number: int) -> bytes:
    """Return a small JPEG with a color of its class and a random pattern; `number` is the class plus a multiple."""
    label, random = number % CLASSES, np.random.default_rng(number)
    color = np.array([label // 100, label // 10 % 10, label % 10]) * 20 + 30
    file = io.BytesIO()
    pattern = random.integers(-20, 21, (32, 40, 1))
    Image.fromarray((color + pattern).astype(np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


@dataclass(frozen=True)
class Content:
    """The classes and images of a distribution. train: images per class. val, test: ground truths (ILSVRC ids)."""

    synsets: tuple[tuple[int, str, str], ...] = SYNSETS
    train: int = TRAIN
    val: tuple[int, ...] = VAL
    test: tuple[int, ...] = TEST
    train_picture: Callable[[int, int], bytes] = lambda number, image: picture(number * TRAIN + image)
    val_picture: Callable[[int, int], bytes] = lambda at, _number: picture(10 + at)
    test_picture: Callable[[int, int], bytes] = lambda at, _number: picture(16 + at)


def thousand_classes(*, train: int = 2, val: int = 200, test: int = 100) -> Content:
    """Return 1,000 classes with `train` images each; ILSVRC ids are in another order than WordNet ids."""
    ids = [int(number) for number in np.random.default_rng(0).permutation(CLASSES) + 1]
    synsets = tuple((number, f"n{1_440_764 + 7 * at:08d}", f"class {at}, of many") for at, number in enumerate(ids))

    def held_out(offset: int) -> Callable[[int, int], bytes]:
        return lambda at, number: textured_picture(number % CLASSES + CLASSES * (offset + at))

    return Content(
        tuple(sorted(synsets)),
        train,
        tuple(ids[at % CLASSES] for at in range(val)),
        tuple(ids[-1 - at % CLASSES] for at in range(test)),
        lambda number, image: textured_picture(number % CLASSES + CLASSES * image),
        held_out(1_000),
        held_out(100_000),
    )


def _tar(path: Path | None, members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    if path is not None:
        path.write_bytes(file.getvalue())
    return file.getvalue()


def _meta(year: int, content: Content) -> bytes:
    parents = ((len(content.synsets) + 1, "n00001740", "entity"),)
    rows = []
    for number, wordnet_id, words in (*content.synsets, *parents):
        leaf = number <= len(content.synsets)
        children = np.array([], np.uint8) if leaf else np.array([1, 2, 3], np.uint8)
        announced = float(content.train if leaf else 0)
        rows.append((float(number), wordnet_id, words, "a gloss", float(children.size), children, 0.0, announced))
    names = ("WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    table = np.array(rows, [(name, object) for name in (f"ILSVRC{year}_ID", *names)]).reshape(-1, 1)
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()


def write_ilsvrc(
    root: Path,
    year: int = 2012,
    *,
    unpacked: bool = False,
    truth: tuple[int, ...] | None = None,
    content: Content | None = None,
) -> Path:
    """Write the distribution into `root`, packed or unpacked, and return `root`.

    truth: the ground truth of the validation images, if it is another than that of `content`.
    """
    content = content or Content()
    root.mkdir(parents=True)
    train = {
        wordnet_id: {
            f"{wordnet_id}_{image}.JPEG": content.train_picture(number, image) for image in range(content.train)
        }
        for number, wordnet_id, _ in content.synsets
    }
    val = {
        f"ILSVRC{year}_val_{at + 1:08d}.JPEG": content.val_picture(at, number) for at, number in enumerate(content.val)
    }
    test = {
        f"ILSVRC{year}_test_{at + 1:08d}.JPEG": content.test_picture(at, number)
        for at, number in enumerate(content.test)
    }
    lines = {
        "validation": "".join(f"{number}\n" for number in truth or content.val),
        "test": "".join(f"{number}\n" for number in content.test),
    }
    kit = "ILSVRC2012_devkit_t12" if year == 2012 else "devkit-1.0"
    files = {
        f"{kit}/readme.txt": b"",
        f"{kit}/data/meta.mat": _meta(year, content),
        f"{kit}/data/ILSVRC{year}_validation_ground_truth.txt": lines["validation"].encode(),
    }
    if year == 2010:
        (root / "ILSVRC2010_test_ground_truth.txt").write_text(lines["test"])
    if unpacked:
        _write_unpacked(root, year, files, {"train": train, "val": {"": val}, "test": {"": test}})
        return root
    inner = "" if year == 2012 else "val/"
    _tar(root / f"{'ILSVRC2012_devkit_t12' if year == 2012 else 'ILSVRC2010_devkit-1.0'}.tar.gz", files, "w:gz")
    kinds = ("img_train", "img_val", "img_test") if year == 2012 else ("images_train", "images_val", "images_test")
    _tar(root / f"ILSVRC{year}_{kinds[0]}.tar", {f"{name}.tar": _tar(None, images) for name, images in train.items()})
    _tar(root / f"ILSVRC{year}_{kinds[1]}.tar", {inner + name: content for name, content in val.items()})
    _tar(root / f"ILSVRC{year}_{kinds[2]}.tar", test)
    return root


def _write_unpacked(
    root: Path, year: int, kit: dict[str, bytes], splits: dict[str, dict[str, dict[str, bytes]]]
) -> None:
    """Write folders. kit: files by path. splits: images by split, folder and name."""
    (root / f"ILSVRC{year}_bbox_val_v3").mkdir()
    for name, content in kit.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(content)
    for split, folders in splits.items():
        (root / split).mkdir()
        for at, (folder, images) in enumerate(folders.items()):
            if folder and at == 0:  # one of the class tars stays packed
                _tar(root / split / f"{folder}.tar", images)
                continue
            (root / split / folder).mkdir(exist_ok=True)
            for name, content in images.items():
                (root / split / folder / name).write_bytes(content)


def main() -> None:
    """Write a miniature with 1,000 classes."""
    parser = argparse.ArgumentParser(description="Write a miniature of ILSVRC with 1,000 classes.")
    parser.add_argument("folder", type=Path, metavar="DIR", help="new folder")
    parser.add_argument("--year", type=int, choices=(2010, 2012), default=2012)
    options = parser.parse_args()
    write_ilsvrc(options.folder, options.year, content=thousand_classes())


if __name__ == "__main__":
    main()
