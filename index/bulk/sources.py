"""Sources of images to index: a local folder, or any file system that pyarrow can open from a URI.

Guarantees: images are listed folder by folder and sorted, in the order of `find_images`, and all other files are
reported as it does; every machine with access to the same storage can read a listed file by the same name; only the
names of one folder at a time are in memory; a source that cannot be opened or listed raises `SourceError`, a file that
cannot be read raises `OSError`.
A password in a URI is never shown.
Out of scope: archives; credentials (pyarrow takes them from the environment, its configuration files, the machine's
role, or the URI).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from index.errors import SourceError
from model_store.errors import DatasetError, MissingExtraError
from model_store.image_files import (
    SNIFFED_BYTES,
    SkipKind,
    Skipped,
    escape_name,
    find_images,
    is_hidden,
    kind_of_name,
    unescape_name,
    why_no_image,
)

MAX_FILE_BYTES = 200_000_000
NO_IMAGES = "has no images: none of its files ends like one (.jpg, .png, .webp, .gif, .bmp, .tiff, .avif, .heic)."
"""The reason of a FolderError for a folder or source without images."""
_PASSWORD = re.compile(r"^([a-z][a-z0-9+.-]*://)[^@?]*:[^@?]*@", re.IGNORECASE)
Skip = Callable[[Skipped], None]


def _ignore(_: Skipped) -> None:
    pass


class Source(Protocol):
    """A tree of files. location: the path or URI from which `open_source` opens the same source on any machine.

    shown: the location in messages, without a password.
    """

    location: str
    shown: str

    def list(self, skip: Skip = _ignore) -> Iterator[str]:
        """Yield the paths of the images below the source, with forward slashes, escaped by `escape_name`.

        skip: called for every other file. Raises SourceError.
        """

    def read(self, name: str) -> bytes:
        """Return the bytes of a listed file. Raises OSError, also if it has more than `MAX_FILE_BYTES`."""

    def check(self) -> None:
        """Raise SourceError if the source does not exist."""


class FolderSource:
    """A local or mounted folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.location = self.shown = str(self.folder)

    def list(self, skip: Skip = _ignore) -> Iterator[str]:
        """Yield the paths of the images within the folder. Raises SourceError."""
        try:
            for path in find_images(self.folder, skip):
                yield escape_name(path.relative_to(self.folder).as_posix())
        except DatasetError as error:
            raise SourceError(self.location, str(error)) from error

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises OSError."""
        return read_file(self.folder / unescape_name(name))

    def check(self) -> None:
        """Raise SourceError if the folder does not exist."""
        if not self.folder.is_dir():
            raise SourceError(self.location, "the folder does not exist")


class RemoteSource:
    """A folder or bucket that pyarrow opens from a URI: `s3://bucket/photos`, `gs://`, `hdfs://`, `file:///`."""

    def __init__(self, uri: str) -> None:
        """Raises SourceError if pyarrow cannot open the URI, MissingExtraError if pyarrow is not installed."""
        self.location, self.shown = uri, without_password(uri).partition("?")[0].rstrip("/")
        self._fs = _pyarrow_fs()
        try:
            self._files, path = self._fs.FileSystem.from_uri(uri)
        except (OSError, ValueError, TypeError, NotImplementedError) as error:  # ArrowInvalid is a ValueError
            raise self._error(error) from error
        self._root = path.rstrip("/")

    def list(self, skip: Skip = _ignore) -> Iterator[str]:
        """Yield the paths of the images below the URI. Raises SourceError."""
        yield from self._below(self._root, skip)

    def _below(self, folder: str, skip: Skip) -> Iterator[str]:
        entries = self._file_info(self._fs.FileSelector(folder or "/"))
        for entry in sorted(entries, key=lambda each: each.base_name):
            if not is_hidden(entry.base_name) and entry.type == self._fs.FileType.Directory:
                try:
                    yield from self._below(entry.path, skip)
                except SourceError as error:
                    skip(Skipped(self._location_of(entry.path), str(error), SkipKind.UNREADABLE))
            elif (found := self._why_skipped(entry)) is not None:
                skip(Skipped(self._location_of(entry.path), found[1], found[0]))
            else:
                yield escape_name(entry.path[len(self._root) :].lstrip("/"))

    def _why_skipped(self, entry: Any) -> tuple[SkipKind, str] | None:
        if is_hidden(entry.base_name):
            return SkipKind.HIDDEN, "Hidden and system files are ignored."
        if entry.type != self._fs.FileType.File:
            return SkipKind.SPECIAL_FILE, "It is not a regular file."
        is_image = kind_of_name(entry.base_name)
        if is_image is None:
            try:
                with self._files.open_input_stream(entry.path) as file:
                    return why_no_image(file.read(SNIFFED_BYTES))
            except OSError as error:
                return SkipKind.UNREADABLE, f"The file cannot be read: {_one_line(error)}."
        return None if is_image else (SkipKind.NOT_AN_IMAGE, "Its name does not end like that of an image.")

    def _location_of(self, path: str) -> str:
        return escape_name(f"{self.shown}/{path[len(self._root) :].lstrip('/')}")

    def _error(self, error: Exception) -> SourceError:
        """Return the error for the user, without the password that a URI can contain."""
        reason = _one_line(error).replace(self.location, without_password(self.location))
        return SourceError(self.shown, reason)

    def read(self, name: str) -> bytes:
        """Return the bytes of a file. Raises OSError."""
        with self._files.open_input_file(f"{self._root}/{unescape_name(name)}") as file:
            _check_size(file.size())
            data: bytes = file.read()
        return data

    def check(self) -> None:
        """Raise SourceError if the folder or bucket does not exist."""
        if self._file_info(self._root or "/").type != self._fs.FileType.Directory:
            raise SourceError(self.shown, "the folder does not exist")

    def _file_info(self, selected: Any) -> Any:
        try:
            return self._files.get_file_info(selected)
        except (OSError, ValueError) as error:
            raise self._error(error) from error


def read_file(path: Path) -> bytes:
    """Return the bytes of a file. Raises OSError, also if it has more than `MAX_FILE_BYTES`."""
    _check_size(path.stat().st_size)
    return path.read_bytes()


def is_uri(source: str) -> bool:
    """Return whether `source` is a URI, not a path."""
    return "://" in source


def without_password(source: str) -> str:
    """Return a path or URI without the `KEY:SECRET@` that a URI can contain."""
    return _PASSWORD.sub(r"\1", source) if is_uri(source) else source


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
