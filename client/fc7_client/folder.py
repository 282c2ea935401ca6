"""Adds the images of a folder to the index, several at the same time.

Guarantees: at most `concurrency` images are in memory. An image that is indexed under its key with the same bytes is
not sent again, so that an interrupted call is continued by repeating it. A file that the server rejects is reported
and does not stop the others.
Out of scope: removing indexed images whose files no longer exist.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Final

from fc7_client.binding import operation
from fc7_client.errors import InvalidRequestError
from fc7_client.images import page_of, put
from fc7_client.models import Skipped
from fc7_client.steps import Flow, Many, Work

IMAGE_SUFFIXES: Final = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic", ".heif"}
)


@dataclass
class FolderReport:
    """How far `add_folder` is, and at the end its result. done = added + replaced + unchanged + len(skipped).

    unchanged: indexed before with the same bytes. skipped: files that the server rejected or that could not be read.
    """

    total: int
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: list[Skipped] = field(default_factory=list)

    @property
    def done(self) -> int:
        """The number of files that are finished."""
        return self.added + self.replaced + self.unchanged + len(self.skipped)


def folder_label(path: PurePosixPath) -> dict[str, str]:
    """Metadata for `add_folder`: the name of a file's folder as its label, nothing for a file without a folder."""
    return {"label": path.parent.name} if path.parent.name else {}


class FolderOperations:
    """The operation that adds a folder."""

    @operation
    def add_folder(
        self,
        folder: str | os.PathLike[str],
        *,
        prefix: str = "",
        metadata: Callable[[PurePosixPath], Mapping[str, Any]] | None = None,
        progress: Callable[[FolderReport], object] | None = None,
        concurrency: int = 4,
        suffixes: frozenset[str] = IMAGE_SUFFIXES,
    ) -> Flow[FolderReport]:
        """Add the images in a folder and the folders below it. Call it again to continue, or to add new files.

        The key of an image is `prefix` and its path below the folder, with slashes. Hidden files and files with other
        suffixes are ignored. metadata: returns that of a new image, by its path below the folder; see `folder_label`.
        progress: is called after each file, never twice at the same time. concurrency: requests at the same time.

        Raises NotADirectoryError, and what `put_image` raises except InvalidRequestError; what was added stays.
        """
        if concurrency < 1:
            raise ValueError(f"concurrency={concurrency} is not valid: use at least 1.")
        root = Path(folder)
        paths: list[PurePosixPath] = yield Work(lambda: _image_files(root, suffixes))
        known = yield from _known(prefix)
        report = FolderReport(len(paths))

        def add(path: PurePosixPath) -> Flow[tuple[str, Skipped | None]]:
            key = prefix + str(path)
            try:
                data: bytes = yield Work((root / path).read_bytes)
                if known.get(key) == hashlib.sha256(data).digest():
                    return "unchanged", None
                result = yield from put(key, data, None if metadata is None else metadata(path))
            except OSError as error:
                return "skipped", Skipped(name=str(path), reason=f"The file cannot be read: {error.strerror}.")
            except InvalidRequestError as error:
                return "skipped", Skipped(name=str(path), reason=error.detail, kind=error.slug)
            return result.outcome, None

        def count(outcome: tuple[str, Skipped | None]) -> None:
            name, skipped = outcome
            if skipped is not None:
                report.skipped.append(skipped)
            else:
                setattr(report, name, getattr(report, name) + 1)
            if progress is not None:
                progress(report)

        yield Many(iter(map(add, paths)), concurrency, count)
        return report


def _known(prefix: str) -> Flow[dict[str, bytes]]:
    """Return the SHA-256 of the indexed images, by key."""
    known: dict[str, bytes] = {}
    cursor = None
    while True:
        page = yield from page_of(cursor, prefix=prefix or None)
        known.update((image.key, bytes.fromhex(image.sha256)) for image in page.images)
        cursor = page.next_cursor
        if cursor is None:
            return known


def _image_files(root: Path, suffixes: frozenset[str]) -> Sequence[PurePosixPath]:
    """Return the paths of the image files below the folder, sorted. Raises NotADirectoryError."""
    if not root.is_dir():
        raise NotADirectoryError(f"{root} is not a folder.")
    return sorted(_walk(root, suffixes))


def _walk(root: Path, suffixes: frozenset[str]) -> Iterator[PurePosixPath]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith(".")]
        below = PurePosixPath(Path(folder).relative_to(root).as_posix())
        for name in names:
            if not name.startswith(".") and Path(name).suffix.lower() in suffixes:
                yield below / name
