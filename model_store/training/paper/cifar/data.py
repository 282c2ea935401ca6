"""Read CIFAR-10 as small pictures in class folders, from a tar file or a folder, into memory.

    <any>/train/<class>/*.jpg     <any>/test/<class>/*.jpg      32x32 each

Promises: every picture is read or the whole is refused, naming the folder or file; nothing is unpacked to disk; a cache
is keyed by the content of all files, so that it is never another data set's.
Does not: use `model_store.image.prepare`. That makes 256x256 of photographs of any size; here the 32x32 pixels are the
nets' input as they are.
Source: the paper, sections 3.1 and 3.3; A. Krizhevsky, Learning multiple layers of features from tiny images, 2009.
"""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.durable import sha256_of, write_atomic
from model_store.errors import DatasetError
from model_store.image import SUFFIXES
from model_store.training.paper.cifar.nets import PICTURE

SPLITS: Final = ("train", "test")
_LAYOUT: Final = "expected train/<class>/* and test/<class>/*"
_CACHE_FORMAT: Final = 2
_LARGEST: Final = 1 << 20  # bytes of a file; a 32x32 picture has about a thousand


@dataclass(frozen=True, slots=True)
class Pictures:
    """A split. `pixels`: uint8 [n, 32, 32, 3], RGB; `labels`: int64 [n], indices into the classes."""

    pixels: NDArray[np.uint8]
    labels: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True)
class CifarData:
    """Both splits. `hash`: SHA-256 over paths and contents; `classes`: names of the class folders, sorted."""

    train: Pictures
    test: Pictures
    classes: tuple[str, ...]
    hash: str


def load_cifar(source: Path, cache: Path | None = None) -> CifarData:
    """Read all pictures of `source`, a tar file or a folder; with `cache`, a folder, decode them only once.

    Raises DatasetError that names what is missing, empty, unreadable or of another size.
    """
    if not source.exists():
        raise DatasetError(f"{source} does not exist: --data takes a tar file or a folder, {_LAYOUT}")
    # A tar need not be read file by file to know it again.
    files = _Files.read(source) if cache is None or source.is_dir() else None
    kept = None
    if cache is not None:
        key = _hash_of_tar(source) if files is None else files.hash
        kept = cache / f"cifar-v{_CACHE_FORMAT}-{key[:16]}.npz"
        if (data := _from_cache(kept)) is not None:
            return data
    files = files or _Files.read(source)
    data = CifarData(
        files.decode("train"), files.decode("test"), classes=tuple(sorted(files.classes["train"])), hash=files.hash
    )
    if kept is not None:
        stream = io.BytesIO()
        arrays = {f"{split}_{field}": getattr(getattr(data, split), field) for split in SPLITS for field in _FIELDS}
        np.savez(stream, **arrays, classes=np.array(data.classes), hash=np.array(data.hash))
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(kept, stream.getvalue())
    return data


_FIELDS: Final = ("pixels", "labels")


def _hash_of_tar(source: Path) -> str:
    try:
        return sha256_of(source)
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error}") from error


def _from_cache(kept: Path) -> CifarData | None:
    """Return what the cache holds, None if it holds nothing whole: then the pictures are decoded and written again."""
    try:
        # Opened here: NumPy leaves a file open that it cannot read.
        with kept.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            train, test = (Pictures(*(arrays[f"{split}_{field}"] for field in _FIELDS)) for split in SPLITS)
            return CifarData(train, test, classes=tuple(arrays["classes"].tolist()), hash=str(arrays["hash"]))
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None


@dataclass(frozen=True, slots=True)
class _Files:
    """The encoded files of each split and class, by name."""

    source: Path
    classes: Mapping[str, Mapping[str, Mapping[str, bytes]]]  # split -> class -> name -> content
    hash: str

    @classmethod
    def read(cls, source: Path) -> _Files:
        classes: dict[str, dict[str, dict[str, bytes]]] = {split: {} for split in SPLITS}
        for path, content in _walk_folder(source) if source.is_dir() else _walk_tar(source):
            place = _place(path, folder=content is None)
            if place is None:
                continue
            split, label = place
            pictures = classes[split].setdefault(label, {})
            if content is not None:
                pictures[path.name] = content
        _check(source, classes)
        digest = hashlib.sha256()
        for split in SPLITS:
            for label in sorted(classes[split]):
                for name, content in sorted(classes[split][label].items()):
                    digest.update(f"{split}/{label}/{name}\0{len(content)}\0".encode())
                    digest.update(content)
        return cls(source, classes, digest.hexdigest())

    def decode(self, split: str) -> Pictures:
        pixels, labels = [], []
        for index, (label, pictures) in enumerate(sorted(self.classes[split].items())):
            for name, content in sorted(pictures.items()):
                pixels.append(_decode(content, f"{self.source}: {split}/{label}/{name}"))
                labels.append(index)
        return Pictures(np.stack(pixels), np.array(labels, np.int64))


def _place(path: PurePosixPath, *, folder: bool) -> tuple[str, str] | None:
    """Return (split, class) of a class folder, or of a picture in one; None for anything else."""
    if not folder and path.suffix.lower() not in SUFFIXES:
        return None
    parts = path.parts if folder else path.parts[:-1]
    if len(parts) < 2 or parts[-2] not in SPLITS or parts[-1].startswith("."):
        return None
    return parts[-2], parts[-1]


def _walk_folder(source: Path) -> Iterator[tuple[PurePosixPath, bytes | None]]:
    """Yield what lies in a folder, as `_walk_tar` does."""
    try:
        for path in sorted(source.rglob("*")):
            relative = PurePosixPath(path.relative_to(source).as_posix())
            if path.is_dir():
                yield relative, None
            elif _place(relative, folder=False) is not None:
                yield relative, path.read_bytes()
    except OSError as error:
        raise DatasetError(f"{source} cannot be read: {error}") from error


def _walk_tar(source: Path) -> Iterator[tuple[PurePosixPath, bytes | None]]:
    """Yield (path, content) of the files in a tar, and (path, None) of its folders."""
    try:
        with tarfile.open(source) as archive:
            for member in archive:
                path = PurePosixPath(member.name)
                if member.isdir():
                    yield path, None
                elif member.isfile() and _place(path, folder=False) is not None:
                    if member.size > _LARGEST:
                        raise DatasetError(f"{source}: {path} has {member.size:,} bytes: that is no 32x32 picture")
                    stream = archive.extractfile(member)
                    yield path, b"" if stream is None else stream.read()
    except (tarfile.TarError, OSError, EOFError) as error:
        raise DatasetError(f"{source} is no tar file, or a cut one: {error}") from error


def _check(source: Path, classes: Mapping[str, Mapping[str, Mapping[str, bytes]]]) -> None:
    for split in SPLITS:
        if not classes[split]:
            raise DatasetError(f"{source} has no class folders in {split}/: {_LAYOUT}")
        for label, pictures in sorted(classes[split].items()):
            if not pictures:
                raise DatasetError(f"{source}: the class folder {split}/{label} has no pictures")
    for label in sorted(classes["train"].keys() ^ classes["test"].keys()):
        has, lacks = SPLITS if label in classes["train"] else reversed(SPLITS)
        raise DatasetError(f"{source}: the class {label} is in {has}/ but not in {lacks}/")


def _decode(content: bytes, name: str) -> NDArray[np.uint8]:
    """Return uint8 [32, 32, 3]; the size is read from the header, before any pixel is decoded."""
    try:
        with Image.open(io.BytesIO(content)) as picture:
            if picture.size == (PICTURE, PICTURE):
                return np.asarray(picture.convert("RGB"))
            found = f"{picture.width}x{picture.height}"
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DatasetError(f"{name} is not a readable picture: {error}") from error
    raise DatasetError(f"{name} has {found} pixels, but these nets take {PICTURE}x{PICTURE}")
