"""Read CIFAR-10 into memory, as 32x32 images in class folders, from a tar file or a folder.

    <any>/train/<class>/*.jpg     <any>/test/<class>/*.jpg

Guarantees: either all images are read, or an error names the folder or file at fault. Nothing is unpacked to disk. The
cache is keyed by the content of all files, so it never belongs to another data set.
Out of scope: `model_store.image.prepare`. It resizes photographs to 256x256, but these nets need the original 32x32
pixels.
References: the paper, sections 3.1 and 3.3; A. Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.decoding.formats import SUFFIXES
from model_store.durable import sha256_of, write_atomic
from model_store.errors import DatasetError
from model_store.image_files import escape_name
from model_store.training.paper.cifar.nets import IMAGE_SIZE

SPLITS: Final = ("train", "test")
_ARRAYS: Final = ("pixels", "labels")
_LAYOUT: Final = "expected train/<class>/* and test/<class>/*"
_CACHE_FORMAT: Final = 2
_MAX_BYTES: Final = 1 << 20  # of a file; a 32x32 image has about a thousand

Classes = dict[str, dict[str, dict[str, bytes]]]  # split -> class -> file name -> content


@dataclass(frozen=True, slots=True)
class Images:
    """A split. `pixels`: uint8 [n, 32, 32, 3], RGB. `labels`: int64 [n], indices of the classes."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class CifarData:
    """Both splits. `hash`: SHA-256 over paths and contents. `classes`: sorted names of the class folders."""

    train: Images
    test: Images
    classes: tuple[str, ...]
    hash: str


def load_cifar(source: Path, cache: Path | None = None) -> CifarData:
    """Read all images of `source`, a tar file or a folder. With a `cache` folder, they are decoded only once.

    Raises DatasetError if a folder or image is missing, empty, unreadable or of another size.
    """
    if not source.exists():
        raise DatasetError(f"{source} does not exist. --data requires a tar file or a folder: {_LAYOUT}.")
    # A tar file is recognized by its own hash, without reading its members.
    classes = _read(source) if cache is None or source.is_dir() else None
    cached = None
    if cache is not None:
        key = _hash_of_tar(source) if classes is None else _hash(classes)
        cached = cache / f"cifar-v{_CACHE_FORMAT}-{key[:16]}.npz"
        if (data := _from_cache(cached)) is not None:
            return data
    classes = classes or _read(source)
    train, test = (_decode_split(source, split, classes[split]) for split in SPLITS)
    data = CifarData(train, test, tuple(sorted(classes["train"])), _hash(classes))
    if cached is not None:
        stream = io.BytesIO()
        arrays = {f"{split}_{name}": getattr(getattr(data, split), name) for split in SPLITS for name in _ARRAYS}
        np.savez(stream, **arrays, classes=np.array(data.classes), hash=np.array(data.hash))
        cached.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(cached, stream.getvalue())
    return data


def _from_cache(path: Path) -> CifarData | None:
    """Return the content of the cache, or None if it is missing or damaged."""
    try:
        # NumPy does not close a file that it opened but cannot read.
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            train, test = (Images(*(arrays[f"{split}_{name}"] for name in _ARRAYS)) for split in SPLITS)
            return CifarData(train, test, classes=tuple(arrays["classes"].tolist()), hash=str(arrays["hash"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


def _hash_of_tar(source: Path) -> str:
    try:
        return sha256_of(source)
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error}.") from error


def _hash(classes: Classes) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        for label, files in sorted(classes[split].items()):
            for name, content in sorted(files.items()):
                digest.update(f"{split}/{label}/{name}\0{len(content)}\0".encode())
                digest.update(content)
    return digest.hexdigest()


def _read(source: Path) -> Classes:
    """Return the encoded images. Raises DatasetError if a split or a class is missing or empty."""
    classes: Classes = {split: {} for split in SPLITS}
    try:
        for path, read in _entries(source):
            parts = path.parts if read is None else path.parts[:-1]
            if len(parts) < 2 or parts[-2] not in SPLITS or parts[-1].startswith("."):
                continue
            if read is None:
                classes[parts[-2]].setdefault(escape_name(parts[-1]), {})
            elif path.suffix.lower() in SUFFIXES:
                classes[parts[-2]].setdefault(escape_name(parts[-1]), {})[escape_name(path.name)] = read()
    except (tarfile.TarError, OSError, EOFError) as error:
        problem = "cannot be read" if source.is_dir() else "is not a complete tar file"
        raise DatasetError(f"{source} {problem}: {error}.") from error
    for split in SPLITS:
        if not classes[split]:
            raise DatasetError(f"{source} has no class folders in {split}/: {_LAYOUT}.")
        for label, files in sorted(classes[split].items()):
            if not files:
                raise DatasetError(f"{source}: the class folder {split}/{label} has no images.")
    for label in sorted(classes["train"].keys() ^ classes["test"].keys()):
        present, missing = SPLITS if label in classes["train"] else reversed(SPLITS)
        raise DatasetError(f"{source}: the class {label} is in {present}/ but not in {missing}/.")
    return classes


def _entries(source: Path) -> Iterator[tuple[PurePosixPath, Callable[[], bytes] | None]]:
    """Yield (path, function that reads it) of each file, and (path, None) of each folder."""
    if source.is_dir():
        for path in sorted(source.rglob("*")):
            yield PurePosixPath(path.relative_to(source).as_posix()), None if path.is_dir() else path.read_bytes
        return
    with tarfile.open(source) as archive:
        for member in archive:
            if member.isdir():
                yield PurePosixPath(member.name), None
            elif member.isfile():
                yield PurePosixPath(member.name), partial(_read_member, source, archive, member)


def _read_member(source: Path, archive: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    if member.size > _MAX_BYTES:
        raise DatasetError(f"{source}: {member.name} has {member.size:,} bytes, too many for a 32x32 image.")
    stream = archive.extractfile(member)
    return b"" if stream is None else stream.read()


def _decode_split(source: Path, split: str, classes: dict[str, dict[str, bytes]]) -> Images:
    pixels, labels = [], []
    for index, (label, files) in enumerate(sorted(classes.items())):
        for name, content in sorted(files.items()):
            pixels.append(_decode(content, f"{source}: {split}/{label}/{name}"))
            labels.append(index)
    return Images(np.stack(pixels), np.array(labels, np.int64))


def _decode(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return uint8 [32, 32, 3]. The size is read from the header before any pixel is decoded."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size == (IMAGE_SIZE, IMAGE_SIZE):
                return np.asarray(image.convert("RGB"))
            size = f"{image.width}x{image.height}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name} is not a readable image: {error}.") from error
    raise DatasetError(f"{name} has {size} pixels, but these nets require {IMAGE_SIZE}x{IMAGE_SIZE}.")
