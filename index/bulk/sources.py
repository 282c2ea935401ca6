"""Sources of images to index: a local folder, or any file system that pyarrow can open from a URI.

Guarantees: images are listed folder by folder and sorted, in the order of `find_images`; every machine with access to
the same storage can read a listed file by the same name; only the names of one folder at a time are in memory; a source
that cannot be opened or listed raises `SourceError`, a file that cannot be read raises `OSError`.
Out of scope: archives; credentials (pyarrow takes them from the environment, its configuration files or the machine's
role).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from index.errors import SourceError
from model_store.errors import DatasetError, MissingExtraError
from model_store.image import SUFFIXES, find_images

MAX_FILE_BYTES = 200_000_000
NO_IMAGES = "has no images: none of its files ends in .jpg, .png, .webp, .gif, .bmp or .tiff."
"""The reason of a FolderError for a folder or source without images."""


class Source(Protocol):
    """A tree of files. location: the path or URI from which `open_source` opens the same source on any machine."""

    location: str

    def list(self) -> Iterator[str]:
        """Yield the paths of the images below the source, with forward slashes. Raises SourceError."""

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file. Raises OSError, also if it has more than `MAX_FILE_BYTES`."""

    def check(self) -> None:
        """Raise SourceError if the source does not exist."""


class FolderSource:
    """A local or mounted folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.location = str(self.folder)

    def list(self) -> Iterator[str]:
        """Yield the paths of the images within the folder. Raises SourceError."""
        try:
            for path in find_images(self.folder):
                yield path.relative_to(self.folder).as_posix()
        except DatasetError as error:
            raise SourceError(self.location, str(error)) from error

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises OSError."""
        return read_file(self.folder / name)

    def check(self) -> None:
        """Raise SourceError if the folder does not exist."""
        if not self.folder.is_dir():
            raise SourceError(self.location, "the folder does not exist")


class RemoteSource:
    """A folder or bucket that pyarrow opens from a URI: `s3://bucket/photos`, `gs://`, `hdfs://`, `file:///`."""

    def __init__(self, uri: str) -> None:
        """Raises SourceError if pyarrow cannot open the URI, MissingExtraError if pyarrow is not installed."""
        self.location = uri
        self._fs = _pyarrow_fs()
        try:
            self._files, path = self._fs.FileSystem.from_uri(uri)
        except (OSError, ValueError, TypeError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
            raise SourceError(uri, _one_line(error)) from error
        self._root = path.rstrip("/")

    def list(self) -> Iterator[str]:
        """Yield the paths of the images below the URI. Raises SourceError."""
        yield from self._below(self._root)

    def _below(self, folder: str) -> Iterator[str]:
        entries = self._file_info(self._fs.FileSelector(folder or "/"))
        for entry in sorted(entries, key=lambda each: each.base_name):
            if entry.base_name.startswith("."):
                continue
            if entry.type == self._fs.FileType.Directory:
                yield from self._below(entry.path)
            elif entry.type == self._fs.FileType.File and entry.base_name.lower().endswith(SUFFIXES):
                yield entry.path[len(self._root) :].lstrip("/")

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises OSError."""
        with self._files.open_input_file(f"{self._root}/{name}") as file:
            _check_size(file.size())
            data: bytes = file.read()
        return data

    def check(self) -> None:
        """Raise SourceError if the folder or bucket does not exist."""
        if self._file_info(self._root or "/").type != self._fs.FileType.Directory:
            raise SourceError(self.location, "the folder does not exist")

    def _file_info(self, selected: Any) -> Any:
        try:
            return self._files.get_file_info(selected)
        except (OSError, ValueError) as error:
            raise SourceError(self.location, _one_line(error)) from error


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError, also if it has more than `MAX_FILE_BYTES`."""
    _check_size(path.stat().st_size)
    return path.read_bytes()


def is_uri(source: str) -> bool:
    """Return whether `source` is a URI, not a path."""
    return "://" in source


def open_source(source: str) -> Source:
    """Open the source at a path or URI. Raises SourceError, MissingExtraError."""
    return RemoteSource(source) if is_uri(source) else FolderSource(Path(source))


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise OSError(f"The file has {size:,} bytes; the limit is {MAX_FILE_BYTES:,}.")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _pyarrow_fs() -> Any:
    try:
        from pyarrow import fs  # noqa: PLC0415 - an extra, needed only for URIs
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "ray") from None
    return fs
