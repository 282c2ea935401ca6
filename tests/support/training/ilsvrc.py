"""A miniature ILSVRC-2010 or 2012, in the layout of the distribution."""

from __future__ import annotations

import io
import tarfile
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


def picture(number: int) -> bytes:
    """Return a JPEG whose gray level depends on `number`."""
    file = io.BytesIO()
    Image.fromarray(np.full((60, 80, 3), 10 + 12 * number, np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


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


def _meta(year: int) -> bytes:
    parents = ((4, "n00001740", "entity"),)
    rows = []
    for number, wordnet_id, words in (*SYNSETS, *parents):
        leaf = number <= len(SYNSETS)
        children = np.array([], np.uint8) if leaf else np.array([1, 2, 3], np.uint8)
        announced = float(TRAIN if leaf else 0)
        rows.append((float(number), wordnet_id, words, "a gloss", float(children.size), children, 0.0, announced))
    names = ("WNID", "words", "gloss", "num_children", "children", "wordnet_height", "num_train_images")
    table = np.array(rows, [(name, object) for name in (f"ILSVRC{year}_ID", *names)]).reshape(-1, 1)
    file = io.BytesIO()
    savemat(file, {"synsets": table})
    return file.getvalue()


def write_ilsvrc(root: Path, year: int = 2012, *, unpacked: bool = False, truth: tuple[int, ...] = VAL) -> Path:
    """Write the distribution into `root`, packed or unpacked, and return `root`."""
    root.mkdir(parents=True)
    train = {
        wordnet_id: {f"{wordnet_id}_{image}.JPEG": picture(number * TRAIN + image) for image in range(TRAIN)}
        for number, wordnet_id, _ in SYNSETS
    }
    val = {f"ILSVRC{year}_val_{at + 1:08d}.JPEG": picture(10 + at) for at in range(len(VAL))}
    test = {f"ILSVRC{year}_test_{at + 1:08d}.JPEG": picture(16 + at) for at in range(len(TEST))}
    lines = {
        "validation": "".join(f"{number}\n" for number in truth),
        "test": "".join(f"{number}\n" for number in TEST),
    }
    kit = "ILSVRC2012_devkit_t12" if year == 2012 else "devkit-1.0"
    files = {
        f"{kit}/readme.txt": b"",
        f"{kit}/data/meta.mat": _meta(year),
        f"{kit}/data/ILSVRC{year}_validation_ground_truth.txt": lines["validation"].encode(),
    }
    if year == 2010:
        (root / "ILSVRC2010_test_ground_truth.txt").write_text(lines["test"])
    if unpacked:
        (root / f"ILSVRC{year}_bbox_val_v3").mkdir()
        for name, content in files.items():
            (root / name).parent.mkdir(parents=True, exist_ok=True)
            (root / name).write_bytes(content)
        for at, (wordnet_id, images) in enumerate(train.items()):
            (root / "train").mkdir(exist_ok=True)
            if at == 0:  # one of the class tars stays packed
                _tar(root / "train" / f"{wordnet_id}.tar", images)
                continue
            (root / "train" / wordnet_id).mkdir()
            for name, content in images.items():
                (root / "train" / wordnet_id / name).write_bytes(content)
        for split, images in (("val", val), ("test", test)):
            (root / split).mkdir()
            for name, content in images.items():
                (root / split / name).write_bytes(content)
        return root
    inner = "" if year == 2012 else "val/"
    _tar(root / f"{'ILSVRC2012' if year == 2012 else 'ILSVRC2010'}_devkit.tar.gz", files, "w:gz")
    kinds = ("img_train", "img_val", "img_test") if year == 2012 else ("images_train", "images_val", "images_test")
    _tar(root / f"ILSVRC{year}_{kinds[0]}.tar", {f"{name}.tar": _tar(None, images) for name, images in train.items()})
    _tar(root / f"ILSVRC{year}_{kinds[1]}.tar", {inner + name: content for name, content in val.items()})
    _tar(root / f"ILSVRC{year}_{kinds[2]}.tar", test)
    return root
