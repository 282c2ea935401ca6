"""Where images to index come from: a folder of this machine, or any file system that pyarrow has a URI for.

Promises: images are listed folder by folder, sorted, as `find_images` finds them; what is listed on one machine can be
read by the same name on another that sees the same storage; a source that cannot be opened or listed is one
`SourceError`, a file that cannot be read one `OSError`.
Does not: look into archives, hold more than one folder's names at a time, keep credentials (pyarrow's own rules hold:
environment, configuration files, the machine's role).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from index.errors import SourceError
from model_store.errors import DatasetError, MissingExtraError
from model_store.image import SUFFIXES, find_images

MAX_FILE_BYTES = 200_000_000


class Source(Protocol):
    """A tree of files. `place` is what `open_source` makes the same source of, on any machine that sees it."""

    place: str

    def list(self) -> Iterator[str]:
        """Yield the images' paths below the source, with forward slashes. Raises SourceError."""

    def read(self, name: str) -> bytes:
        """Return a listed file's bytes. Raises OSError: also for more than `MAX_FILE_BYTES`."""

    def check(self) -> None:
        """Raise SourceError when it is not there."""


class FolderSource:
    """A folder that this machine has mounted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.place = str(self.folder)

    def list(self) -> Iterator[str]:
        """Yield the images' paths within the folder. Raises SourceError."""
        try:
            for path in find_images(self.folder):
                yield path.relative_to(self.folder).as_posix()
        except DatasetError as error:
            raise SourceError(self.place, str(error)) from error

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises OSError."""
        return read_file(self.folder / name)

    def check(self) -> None:
        """Raise SourceError when the folder is not there."""
        if not self.folder.is_dir():
            raise SourceError(self.place, "there is no such folder")


class RemoteSource:
    """A folder or a bucket behind a pyarrow file system: `s3://bucket/photos`, `gs://`, `hdfs://`, `file:///`."""

    def __init__(self, uri: str) -> None:
        """Raises SourceError for a URI that pyarrow cannot open, MissingExtraError without pyarrow."""
        fs = _pyarrow_fs()
        self.place = uri
        try:
            self._files, path = fs.FileSystem.from_uri(uri)
        except (OSError, ValueError, TypeError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
            raise SourceError(uri, _one_line(error)) from error
        self._root = path.rstrip("/")

    def list(self) -> Iterator[str]:
        """Yield the images' paths below the URI. Raises SourceError."""
        yield from self._below(self._root)

    def _below(self, folder: str) -> Iterator[str]:
        fs = _pyarrow_fs()
        try:
            entries = self._files.get_file_info(fs.FileSelector(folder or "/"))
        except (OSError, ValueError) as error:
            raise SourceError(self.place, _one_line(error)) from error
        for entry in sorted(entries, key=lambda each: each.base_name):
            if entry.base_name.startswith("."):
                continue
            if entry.type == fs.FileType.Directory:
                yield from self._below(entry.path)
            elif entry.type == fs.FileType.File and entry.base_name.lower().endswith(SUFFIXES):
                yield entry.path[len(self._root) :].lstrip("/")

    def read(self, name: str) -> bytes:
        """Return a file's bytes. Raises OSError."""
        with self._files.open_input_file(f"{self._root}/{name}") as file:
            _check_size(file.size())
            data: bytes = file.read()
        return data

    def check(self) -> None:
        """Raise SourceError when nothing is there."""
        fs = _pyarrow_fs()
        try:
            info = self._files.get_file_info(self._root or "/")
        except (OSError, ValueError) as error:
            raise SourceError(self.place, _one_line(error)) from error
        if info.type != fs.FileType.Directory:
            raise SourceError(self.place, "there is no such folder")


def read_file(path: Path) -> bytes:
    """Return a file's bytes. Raises OSError: also for more than `MAX_FILE_BYTES`."""
    _check_size(path.stat().st_size)
    return path.read_bytes()


def is_uri(source: str) -> bool:
    """Tell whether `source` is a URI rather than a path."""
    return "://" in source


def open_source(source: str) -> Source:
    """Return the source that a path or a URI names. Raises SourceError, MissingExtraError."""
    return RemoteSource(source) if is_uri(source) else FolderSource(Path(source))


def _check_size(size: int) -> None:
    if size > MAX_FILE_BYTES:
        raise OSError(f"it has {size:,} bytes, and {MAX_FILE_BYTES:,} is the most")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())


def _pyarrow_fs() -> Any:
    try:
        from pyarrow import fs  # noqa: PLC0415 - an extra: only who reads from a URI needs it
    except ModuleNotFoundError:
        raise MissingExtraError("pyarrow", "ray") from None
    return fs
