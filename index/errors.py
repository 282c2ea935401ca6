"""Exception hierarchy of the index package.

Fc7Error
└── ImageIndexError
    ├── InvalidKeyError            the key cannot be stored
    ├── MetadataError              the metadata is not a JSON object, is too large or is nested too deeply
    ├── VectorError                the vector has values that cannot be stored or compared
    ├── CursorError                the cursor was not returned by this listing
    ├── FilterError                the `where` filter has a syntax error or does not match the field's type
    ├── KeyNotFoundError           no image has this key
    │   └── PictureNotFoundError   the image exists, but its picture was not stored
    ├── IndexModelError            the vectors were made by another model
    ├── ModeUnavailableError       the search mode has no code yet, or is not supported
    ├── IndexLockedError           another process has the index open
    ├── IndexCorruptError          the catalog on disk is damaged
    ├── IndexFormatError           the catalog was written by a newer fc7
    ├── IndexUnavailableError      the index cannot serve the request now
    │   ├── IndexSwitchedError     the index switched to another model during the request
    │   │   └── IndexPausedError   changes are paused while an index on Milvus switches to another model
    │   ├── IndexUnreachableError  Milvus does not respond, or rejected a call
    │   ├── IndexReadOnlyError     the index can be read, but not written
    │   ├── IndexUnreadableError   a file of the index cannot be read: permissions, or an error of the disk
    │   ├── IndexBusyError         another process has locked the database
    │   └── IndexFullError         the disk is full
    ├── IndexUriError              FC7_INDEX_URI is not a valid address
    ├── MilvusUnsupportedError     the operation is not supported by an index on Milvus
    ├── IndexLimitError            the request exceeds a limit of Milvus
    ├── FolderError                a folder or an index has no images that can be embedded
    ├── SourceError                a folder or URI with images cannot be opened or listed
    ├── ClusterError               the Ray cluster cannot be joined, or failed
    ├── ImageArchiveError          the archive cannot be read, or was rejected
    ├── DamagedArchiveError        the archive is damaged or cut off in the middle
    ├── SnapshotError              the snapshot is incomplete, damaged or of another format
    ├── SnapshotNotFoundError      no complete snapshot has this name
    ├── TargetExistsError          the file or folder to write already exists
    └── ResultTooLargeError        the predictions need more bytes than allowed
"""

from __future__ import annotations

import errno
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import ClassVar

from model_store.errors import Fc7Error


class ImageIndexError(Fc7Error):
    """Base class of all errors of the index."""


@dataclass(eq=False)
class _ReasonError(ImageIndexError):
    """Base of errors about a reason."""

    reason: str


@dataclass(eq=False)
class _SubjectError(ImageIndexError):
    """Base of errors about a subject (a path, key or URI) and a reason."""

    shown: ClassVar[int | None] = None
    """How many characters of the subject the message shows; None shows all of them."""
    subject: Path | str
    reason: str

    def __str__(self) -> str:
        subject = str(self.subject)
        if self.shown is not None and len(subject) > self.shown:
            subject = f"{subject[: self.shown]}..."
        return self.message.format(subject=subject, reason=self.reason.rstrip("."))


class InvalidKeyError(_SubjectError):
    """The key is empty, too long, "." or "..", or contains control characters."""

    message = (
        "The key {subject!a} {reason}. A key must have 1 to 200 characters and no control characters, and must not be "
        ". or .. only."
    )
    shown = 40


class MetadataError(_ReasonError):
    """The metadata is not a JSON object, or exceeds a limit."""

    message = "The metadata {reason}. It must be a JSON object of at most 16 KB and 8 levels."


class VectorError(_ReasonError):
    """The vector has values that float16 cannot hold."""

    message = (
        "Vector {reason}. Vectors are stored as float16, so every value must be finite and within ±65504. "
        "The model's weights may be damaged: check it with fc7 evaluate."
    )


class CursorError(_SubjectError):
    """The cursor was modified, or belongs to another index or filter."""

    message = "The cursor {subject!a} {reason}. List again without a cursor."
    shown = 40


class FilterError(_SubjectError):
    """The filter has a syntax error, names an unknown field, or has a value of the wrong type."""

    message = "where={subject!a} {reason}. Examples of filters: label:cat, label:cat,dog and year>=2020."
    shown = 80


@dataclass(eq=False)
class KeyNotFoundError(ImageIndexError):
    """No image has this key."""

    key: str
    message = "No image has the key {key!r}."


class PictureNotFoundError(KeyNotFoundError):
    """The image is in the index, but was added without storing its picture."""

    message = "The picture of {key!r} was not stored. Add the image again to store it."


@dataclass(eq=False)
class IndexModelError(ImageIndexError):
    """The index's vectors were made by another model, so they cannot be compared with this model's vectors."""

    path: Path | str
    found: str
    expected: str
    missing_vectors: int
    message = (
        "The vectors of the index in {path} were made by {found}, and {missing_vectors} of its images have no vector "
        "made by {expected}. Vectors of different models cannot be compared. Embed the stored pictures again with "
        "fc7 index reembed, or index the folder again with fc7 index build DIR --rebuild."
    )


@dataclass(eq=False)
class ModeUnavailableError(ImageIndexError):
    """The search mode has no trained code for this model, or is not supported by an index on Milvus."""

    mode: str
    model: str
    trained: bool = False
    reason: str = ""

    def __str__(self) -> str:
        if self.reason:
            return f"mode={self.mode} is not available. {self.reason}. Repeat the request without a mode."
        if self.trained:
            return (
                f"mode={self.mode} is not available yet: the binary codes of the vectors of {self.model} are being "
                "computed. Try again in a moment."
            )
        return (
            f"mode={self.mode} is not available: no binary codes were trained for {self.model}. Train them with "
            "fc7 codes train."
        )


@dataclass(eq=False)
class IndexLockedError(ImageIndexError):
    """Another process has the index open for writing."""

    path: Path
    pid: int | None

    def __str__(self) -> str:
        holder = "another process" if self.pid is None else f"process {self.pid}"
        return (
            f"The index in {self.path} is open in {holder}. Stop that process, send your request to it, or use another "
            "FC7_HOME."
        )


class IndexCorruptError(_SubjectError):
    """A file of the index differs from what was written."""

    message = (
        "The file {subject} is damaged ({reason}). Run fc7 index verify to list all damage and what can be repaired. "
        "To start over, move the index away; then restore a snapshot with fc7 index restore SNAPSHOT, or index the "
        "images again with fc7 index build DIR."
    )


@dataclass(eq=False)
class IndexFormatError(ImageIndexError):
    """The format of the catalog, or of the index on Milvus, is newer than this program."""

    path: Path | str
    found: int
    known: int

    def __str__(self) -> str:
        own = f"this fc7 ({metadata.version('fc7')}) supports formats up to {self.known}"
        return (
            f"The index {self.path} has format {self.found}, which a later fc7 wrote, but {own}. Nothing was changed. "
            "Upgrade fc7, or restore a backup that was made before the index was converted."
        )


class IndexUnavailableError(_SubjectError):
    """The index cannot serve this request now; the same request may succeed later."""

    message = "The index in {subject} is not available: {reason}. Nothing was changed."


class IndexSwitchedError(IndexUnavailableError):
    """The index switched to the vectors of another model between embedding an image and using the result."""

    message = "The index in {subject} switched to another model during the request ({reason}). Try again."


class IndexPausedError(IndexSwitchedError):
    """An index on Milvus is switching to another model, and accepts no changes now."""

    message = (
        "The index in {subject} is switching to another model, and changes are paused ({reason}). Try again in a "
        "moment. A change in progress may have been applied; it is safe to send it again."
    )


class IndexUnreachableError(IndexUnavailableError):
    """Milvus does not respond in time, or rejected a call."""

    message = (
        "Milvus at {subject} (FC7_INDEX_URI) is not available: {reason}. Acknowledged changes are kept. A change in "
        "progress may have been applied; it is safe to send it again."
    )


class IndexReadOnlyError(IndexUnavailableError):
    """The index can be read, but not written."""

    message = (
        "{subject} cannot be written ({reason}). Nothing was changed. Check the permissions of its folder and files, "
        "the mount and the disk."
    )


class IndexUnreadableError(IndexUnavailableError):
    """A file of the index cannot be read because of its permissions or an error of the disk. It may be undamaged."""

    message = (
        "The index in {subject} cannot be read: {reason}. Nothing was changed, and the index may well be undamaged. "
        "Check the permissions of its folder and files, the mount and the disk."
    )


class IndexBusyError(IndexUnavailableError):
    """Another process holds a lock of the database for too long."""

    message = (
        "The index in {subject} is busy: another process has locked its database ({reason}). Nothing was changed. Try "
        "again, or stop that process."
    )


class IndexFullError(IndexUnavailableError):
    """The disk is too full for this write."""

    message = (
        "The disk is too full to write to {subject} ({reason}). Nothing was changed or lost. Free disk space, for "
        "example by removing old snapshots and model versions, and try again."
    )


class IndexUriError(_SubjectError):
    """FC7_INDEX_URI is not a valid address of an index."""

    message = (
        "FC7_INDEX_URI={subject} is not valid: {reason}. Use http://HOST:19530, https://HOST or, for Milvus Lite, a "
        "file ending in .db. Unset it to keep the index in FC7_HOME."
    )


@dataclass(eq=False)
class MilvusUnsupportedError(ImageIndexError):
    """The operation is not supported by an index on Milvus."""

    uri: str
    what: str
    fix: str
    message = "The index is on Milvus at {uri} (FC7_INDEX_URI): {what}. {fix}"


@dataclass(eq=False)
class IndexLimitError(ImageIndexError):
    """The request exceeds what Milvus accepts or returns in one call."""

    what: str
    limit: int
    message = "{what}, but an index on Milvus supports {limit:,} at most."


class FolderError(_SubjectError):
    """A folder or an index has no images that can be embedded."""

    message = "{subject} {reason}."


class SourceError(_SubjectError):
    """A folder or URI with images cannot be opened or listed."""

    message = (
        "The images in {subject} cannot be read: {reason}. Give a folder, or a URI of a file system that pyarrow "
        "supports: s3://BUCKET/PATH, gs://BUCKET/PATH, hdfs://HOST:PORT/PATH or file:///PATH."
    )


class ClusterError(_SubjectError):
    """The Ray cluster cannot be joined, or failed. What was written to the index stays."""

    message = "The Ray cluster {subject} cannot be used. {reason}."


class ImageArchiveError(_ReasonError):
    """The archive cannot be read, is damaged, or has entries that are not allowed."""

    message = "The archive {reason}. No image was added. Send a .zip, .tar, .tar.gz or .tar.bz2 file with images."


@dataclass(eq=False)
class DamagedArchiveError(ImageIndexError):
    """The archive is damaged or cut off, so that its rest cannot be read. where: such as "after the entry a.jpg"."""

    where: str
    reason: str
    message = "The archive is damaged or cut off {where} ({reason}). Nothing behind that place could be read."


class SnapshotError(_SubjectError):
    """The snapshot is incomplete, damaged, or of an unsupported format."""

    message = "The snapshot {subject} {reason}. Copy it again, or use another snapshot."


@dataclass(eq=False)
class SnapshotNotFoundError(ImageIndexError):
    """The folder of the snapshots has no complete snapshot of this name."""

    name: str

    def __str__(self) -> str:
        return f"No snapshot has the name {self.name[:80]!r}. GET /v1/index/snapshots lists all snapshots."


class TargetExistsError(_SubjectError):
    """The file or folder to write already exists; it is never overwritten."""

    message = "Cannot write {subject}: it already exists. {reason}."


@dataclass(eq=False)
class ResultTooLargeError(ImageIndexError):
    """The predictions need more bytes than allowed."""

    limit: int
    message = (
        "The results need more than {limit:,} bytes. Split the source, choose the format parquet, or leave out the "
        "embeddings."
    )


def translate_os_error(error: OSError, folder: Path) -> ImageIndexError:
    """Return the index's error for an OSError raised while writing in `folder`."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return IndexFullError(folder, error.strerror or "disk full")
    return IndexReadOnlyError(folder, str(error))
