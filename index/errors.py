"""Every error that this room raises on purpose, drawn once.

Fc7Error
└── ImageIndexError
    ├── InvalidKeyError            a key that cannot be stored
    ├── MetadataError              metadata that is no JSON object, or too large or too deep
    ├── VectorError                a vector with values that cannot be stored or compared
    ├── CursorError                a cursor that this listing did not give
    ├── FilterError                a `where` that cannot be read, or compares what cannot be compared
    ├── KeyNotFoundError           no image under this key
    │   └── PictureNotFoundError   the image is there, its stored picture is not
    ├── IndexModelError            the vectors were made by another model
    ├── ModeUnavailableError       a search in a mode that has no code yet
    ├── IndexLockedError           another process has the index open
    ├── IndexCorruptError          the catalogue on disk is damaged
    ├── IndexFormatError           the catalogue was written by a newer fc7
    ├── IndexUnavailableError      the index cannot answer now
    │   ├── IndexMovedError        it went over to another model meanwhile
    │   ├── IndexUnreachableError  Milvus does not answer, or cannot do it
    │   ├── IndexReadOnlyError     it can be read, and not written
    │   └── IndexFullError         no room on the disk
    ├── IndexUriError              a place for the index that cannot be one
    ├── IndexPlaceError            what an index in this place cannot do
    ├── IndexLimitError            more than Milvus takes or gives at a time
    ├── FolderError                a folder with nothing to index
    ├── SourceError                a folder or a URI that cannot be opened or listed
    ├── ClusterError               a cluster that cannot be joined, or cannot work
    ├── ImageArchiveError               an archive that cannot be read, or must not be
    ├── SnapshotError              a snapshot that is not whole, or of another format
    └── TargetExistsError          something is already where this was to be written
"""

from __future__ import annotations

import errno
from pathlib import Path

from model_store.errors import Fc7Error


class ImageIndexError(Fc7Error):
    """Base of all errors of the index."""


class InvalidKeyError(ImageIndexError):
    """A key is empty, too long, or has characters that cannot be shown."""

    def __init__(self, key: str, reason: str) -> None:
        super().__init__(key, reason)
        self.key, self.reason = key, reason

    def __str__(self) -> str:
        shown = self.key if len(self.key) <= 40 else self.key[:40] + "..."
        return f"The key {shown!a} {self.reason}. A key has 1 to 200 characters, none of them a control character."


class MetadataError(ImageIndexError):
    """Metadata is not a JSON object, or over a limit."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return f"The metadata {self.reason}. It must be a JSON object of at most 16 KB and 8 levels."


class VectorError(ImageIndexError):
    """A vector has values that float16 cannot hold."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"The vector {self.reason}. Vectors are kept as float16, so every value must be finite and within ±65504: "
            "check the model with fc7 evaluate, its activations are out of all proportion."
        )


class CursorError(ImageIndexError):
    """A cursor was changed, or comes from another index or filter."""

    def __init__(self, cursor: str, reason: str) -> None:
        super().__init__(cursor, reason)
        self.cursor, self.reason = cursor, reason

    def __str__(self) -> str:
        return f"The cursor {self.cursor[:40]!a} {self.reason}: list again without a cursor."


class FilterError(ImageIndexError):
    """A filter that cannot be read, on an unknown field, or with a value of another type than the field's."""

    def __init__(self, where: str, reason: str) -> None:
        super().__init__(where, reason)
        self.where, self.reason = where, reason

    def __str__(self) -> str:
        shown = self.where if len(self.where) <= 80 else self.where[:80] + "..."
        return f"where={shown!a} {self.reason}. Filters are like label:cat, label:cat,dog and year>=2020."


class KeyNotFoundError(ImageIndexError):
    """No image has this key."""

    def __init__(self, key: str) -> None:
        super().__init__(key)
        self.key = key

    def __str__(self) -> str:
        return f"No image has the key {self.key!r}."


class PictureNotFoundError(KeyNotFoundError):
    """The image is in the index, but it was added without a picture."""

    def __str__(self) -> str:
        return f"The image {self.key!r} was added without its picture being kept: add it again to have one."


class IndexModelError(ImageIndexError):
    """The index's vectors were made by another model than the one at hand; the two cannot be compared."""

    def __init__(self, path: Path | str, found: str, expected: str, missing_vectors: int) -> None:
        super().__init__(path, found, expected, missing_vectors)
        self.path, self.found, self.expected, self.missing_vectors = path, found, expected, missing_vectors

    def __str__(self) -> str:
        return (
            f"The index in {self.path} has vectors made by {self.found}; {self.missing_vectors} of its images have "
            f"none by {self.expected}, and vectors of two models cannot be compared. Embed the stored pictures again: "
            "fc7 index reembed. Or index their folder again: fc7 index build DIR --rebuild"
        )


class ModeUnavailableError(ImageIndexError):
    """A search in a mode whose code was not trained for this model, or that an index on Milvus does not have."""

    def __init__(self, mode: str, model: str, *, trained: bool = False, reason: str = "") -> None:
        super().__init__(mode, model, trained, reason)
        self.mode, self.model, self.trained, self.reason = mode, model, trained, reason

    def __str__(self) -> str:
        if self.reason:
            return f"{self.reason}, so no mode={self.mode}: leave the mode out."
        if self.trained:
            return f"The binary codes of {self.model} for mode={self.mode} are being made now: ask again in a moment."
        return f"There are no binary codes for {self.model}, so no mode={self.mode}: fc7 codes train makes them."


class IndexLockedError(ImageIndexError):
    """Another process has the index open for writing."""

    def __init__(self, path: Path, pid: int | None) -> None:
        super().__init__(path, pid)
        self.path, self.pid = path, pid

    def __str__(self) -> str:
        holder = f"process {self.pid}" if self.pid is not None else "another process"
        return (
            f"The index in {self.path} is open in {holder}: stop it, or send it your request, or use another FC7_HOME."
        )


class IndexCorruptError(ImageIndexError):
    """A file of the index is not what was written."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return (
            f"{self.path} is damaged ({self.reason}). fc7 index verify says what else is, and what can be mended; "
            "to go back: move the index away, and fc7 index restore SNAPSHOT, or index the images again: "
            "fc7 index build DIR"
        )


class IndexFormatError(ImageIndexError):
    """The catalogue's format is newer than this program."""

    def __init__(self, path: Path, found: int, known: int) -> None:
        super().__init__(path, found, known)
        self.path, self.found, self.known = path, found, known

    def __str__(self) -> str:
        return f"{self.path} has format {self.found}; this fc7 knows formats up to {self.known}. Use a newer fc7."


class IndexUnavailableError(ImageIndexError):
    """The index cannot do this now; the same request may work later."""

    def __init__(self, path: Path | str, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"The index in {self.path} cannot answer: {self.reason}. Nothing was changed."


class IndexMovedError(IndexUnavailableError):
    """The index went over to the vectors of another model between the embedding of an image and its use."""

    def __str__(self) -> str:
        return f"The index in {self.path} went over to another model just now ({self.reason}): try again."


class IndexUnreachableError(IndexUnavailableError):
    """Milvus does not answer in time, or refuses a call."""

    def __str__(self) -> str:
        return (
            f"Milvus at {self.path} (FC7_INDEX_URI) cannot answer: {self.reason}. What was acknowledged stays; a "
            "change that was under way may have been made, and sending it again is safe."
        )


class IndexReadOnlyError(IndexUnavailableError):
    """The index can be read, but not written."""

    def __str__(self) -> str:
        return f"The index in {self.path} cannot be written ({self.reason}). Nothing was changed."


class IndexFullError(IndexUnavailableError):
    """There is no room on the disk for this write."""

    def __str__(self) -> str:
        return (
            f"No room on the disk for the index in {self.path} ({self.reason}). Nothing was changed, what was in it "
            "is still there: make room and try again."
        )


class IndexUriError(ImageIndexError):
    """FC7_INDEX_URI names no place where an index can be."""

    def __init__(self, uri: str, reason: str) -> None:
        super().__init__(uri, reason)
        self.uri, self.reason = uri, reason

    def __str__(self) -> str:
        return (
            f"FC7_INDEX_URI={self.uri}: {self.reason}. It is like http://milvus:19530, https://HOST, or a file ending "
            "in .db for Milvus Lite; unset, the index is in FC7_HOME."
        )


class IndexPlaceError(ImageIndexError):
    """A thing that an index of this machine can do, and one on Milvus cannot."""

    def __init__(self, place: str, what: str, mend: str) -> None:
        super().__init__(place, what, mend)
        self.place, self.what, self.mend = place, what, mend

    def __str__(self) -> str:
        return f"The index is on Milvus at {self.place} (FC7_INDEX_URI): {self.what}. {self.mend}"


class IndexLimitError(ImageIndexError):
    """More than Milvus takes or gives in one call."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(what, limit)
        self.what, self.limit = what, limit

    def __str__(self) -> str:
        return f"{self.what}, and an index on Milvus takes {self.limit:,} at most."


class FolderError(ImageIndexError):
    """A folder has nothing that can be indexed."""

    def __init__(self, folder: Path | str, reason: str) -> None:
        super().__init__(folder, reason)
        self.folder, self.reason = folder, reason

    def __str__(self) -> str:
        return f"{self.folder} {self.reason}"


class SourceError(ImageIndexError):
    """A place with images that cannot be opened or listed."""

    def __init__(self, place: str, reason: str) -> None:
        super().__init__(place, reason)
        self.place, self.reason = place, reason

    def __str__(self) -> str:
        return (
            f"{self.place} cannot be read: {self.reason}. Give a folder, or a URI of a file system that pyarrow knows: "
            "s3://BUCKET/PATH, gs://BUCKET/PATH, hdfs://HOST:PORT/PATH, file:///PATH"
        )


class ClusterError(ImageIndexError):
    """The Ray cluster cannot be joined, or cannot do its part. What was written to the index stays."""

    def __init__(self, address: str, reason: str) -> None:
        super().__init__(address, reason)
        self.address, self.reason = address, reason

    def __str__(self) -> str:
        return f"The Ray cluster {self.address}: {self.reason}"


class ImageArchiveError(ImageIndexError):
    """An archive that is none, is damaged, or has what no archive of images needs."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason

    def __str__(self) -> str:
        return (
            f"The archive {self.reason}. Nothing of it was added. "
            "Send a .zip, .tar, .tar.gz, .tar.bz2 or .tar.xz of images."
        )


class SnapshotError(ImageIndexError):
    """A snapshot that is not whole, or that this program does not know."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(path, reason)
        self.path, self.reason = path, reason

    def __str__(self) -> str:
        return f"{self.path} {self.reason}. Copy the snapshot again, or take another one."


class TargetExistsError(ImageIndexError):
    """What was to be written is there already; it is never replaced."""

    def __init__(self, path: Path, mend: str) -> None:
        super().__init__(path, mend)
        self.path, self.mend = path, mend

    def __str__(self) -> str:
        return f"{self.path} exists already, and is not replaced: {self.mend}."


def translate_os_error(error: OSError, folder: Path) -> ImageIndexError:
    """Return the index's error for a failure to write in `folder`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return IndexFullError(folder, error.strerror or "disk full")
    return IndexReadOnlyError(folder, str(error))
