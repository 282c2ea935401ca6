"""Find the image files of a folder, and report every other file with the reason why it is left out.

Guarantees: a file is taken if its name ends like an image's or, without a suffix, if its content is an image. Every
other file, and every folder that cannot be listed, is reported once. Links to folders are not followed, so that loops
end. Names that are not valid Unicode are escaped, and the escaping can be reversed.
Out of scope: decoding; a file with the name of an image can still turn out to be broken.
"""

from __future__ import annotations

import os
import re
import stat
import unicodedata
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Final

from model_store import errors
from model_store.decoding.formats import SUFFIXES, format_of

SNIFFED_BYTES: Final = 65_536
"""How many bytes at the start of a file decide whether it is an image."""
_SYSTEM_NAMES = frozenset(
    ("__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "thumbs.db", "ehthumbs.db",
     "desktop.ini")
)  # fmt: skip
_SUFFIXES = frozenset(SUFFIXES)
_SUFFIX = re.compile(r"\.[a-z][a-z0-9_~-]*", re.IGNORECASE)
_ESCAPED = re.compile(r"\\x([0-9a-f]{2})")
_SPLIT_FOLDERS = {
    **dict.fromkeys(("train", "training"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev"), "val"),
    **dict.fromkeys(("test", "testing"), "test"),
}
_EXAMPLES = 3
_MAX_NAME = 300  # characters of a name in a report


class SkipKind(StrEnum):
    """Why a file is left out, as a category."""

    NOT_AN_IMAGE = "not_an_image"
    BROKEN_IMAGE = "broken_image"
    UNSUPPORTED_FORMAT = "unsupported_format"
    TOO_LARGE = "too_large"
    UNREADABLE = "unreadable"
    LINK = "link"
    SPECIAL_FILE = "special_file"
    INVALID_KEY = "invalid_key"
    UNSAFE_PATH = "unsafe_path"
    ENCRYPTED = "encrypted"
    DAMAGED_ENTRY = "damaged_entry"
    NOT_EMBEDDED = "not_embedded"
    NO_LABEL = "no_label"
    HIDDEN = "hidden"

    @property
    def words(self) -> str:
        """The category in words."""
        return _WORDS[self]


_WORDS = {
    SkipKind.NOT_AN_IMAGE: "not an image file",
    SkipKind.BROKEN_IMAGE: "broken image",
    SkipKind.UNSUPPORTED_FORMAT: "format not supported",
    SkipKind.TOO_LARGE: "over a limit",
    SkipKind.UNREADABLE: "cannot be read",
    SkipKind.LINK: "link",
    SkipKind.SPECIAL_FILE: "not a regular file",
    SkipKind.INVALID_KEY: "name cannot be a key",
    SkipKind.UNSAFE_PATH: "path leads out of the archive",
    SkipKind.ENCRYPTED: "encrypted",
    SkipKind.DAMAGED_ENTRY: "damaged in the archive",
    SkipKind.NOT_EMBEDDED: "the model failed",
    SkipKind.NO_LABEL: "no label",
    SkipKind.HIDDEN: "hidden or system file",
}


@dataclass(frozen=True, slots=True)
class Skipped:
    """A file that was left out. path: escaped by `escape_name`. reason: for the user."""

    path: str
    reason: str
    kind: SkipKind = SkipKind.BROKEN_IMAGE

    @classmethod
    def of(cls, path: Path | str, error: Exception) -> Skipped:
        """Return the entry of a file whose reading or decoding failed with `error`."""
        return cls(escape_name(str(path)), str(error) or type(error).__name__, kind_of(error))

    def to_dict(self) -> dict[str, str]:
        """Return the entry as JSON."""
        return {"path": self.path, "reason": self.reason, "kind": self.kind.value}


def reason_of(error: Exception) -> str:
    """Return why a file that the user named cannot be read or decoded, without repeating its path."""
    return str((isinstance(error, OSError) and error.strerror) or error)


def kind_of(error: Exception) -> SkipKind:
    """Return the category of an error of reading or decoding an image file."""
    if isinstance(error, OSError):
        return SkipKind.UNREADABLE
    if isinstance(error, errors.ImageFormatError):
        return SkipKind.UNSUPPORTED_FORMAT
    limits = (errors.ImageTooLargeError, errors.DecodeTimeError, errors.DecodeMemoryError)
    return SkipKind.TOO_LARGE if isinstance(error, limits) else SkipKind.BROKEN_IMAGE


def find_images(folder: Path, skip: Callable[[Skipped], None] = lambda _: None) -> Iterator[Path]:
    """Yield all image files in `folder` and below, sorted by folder, and call `skip` for everything else.

    Hidden files and folders, and those that systems create (`__MACOSX`, `Thumbs.db`), are reported once and not
    listed. Only files without a suffix are opened. Raises DatasetError if `folder` itself cannot be listed.
    """
    try:
        stack = [_listing(folder)]
    except OSError as error:
        raise errors.DatasetError(
            f"The folder {folder} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from error
    while stack:
        entry = next(stack[-1], None)
        if entry is None:
            stack.pop()
            continue
        path = Path(entry.path)
        try:
            if not is_hidden(entry.name) and entry.is_dir(follow_symlinks=False):
                stack.append(_listing(path))
            elif (found := _why_skipped(entry)) is None:
                yield path
            else:
                skip(Skipped(escape_name(entry.path), found[1], found[0]))
        except OSError as error:
            what = "The folder" if entry.is_dir(follow_symlinks=False) else "The file"
            skip(Skipped(escape_name(entry.path), f"{what} cannot be read: {error.strerror or error}.", kind_of(error)))


def _listing(folder: Path) -> Iterator[os.DirEntry[str]]:
    with os.scandir(folder) as listing:
        return iter(sorted(listing, key=lambda entry: entry.name))


def _why_skipped(entry: os.DirEntry[str]) -> tuple[SkipKind, str] | None:
    """Return the category and the reason if the entry is not taken for an image file. Raises OSError."""
    if is_hidden(entry.name):
        return SkipKind.HIDDEN, "Hidden and system files are ignored."
    if entry.is_symlink():
        try:
            mode = entry.stat().st_mode
        except OSError as error:
            return SkipKind.LINK, f"The link is broken: {error.strerror}. Remove it, or restore the file."
        if stat.S_ISDIR(mode):
            return SkipKind.LINK, "Links to folders are not followed. Copy or move the folder here."
    else:
        mode = 0
    if not (stat.S_ISREG(mode) if mode else entry.is_file(follow_symlinks=False)):
        return SkipKind.SPECIAL_FILE, "It is not a regular file, but a device, socket or pipe."
    kind = kind_of_name(entry.name)
    if kind is None:
        with Path(entry.path).open("rb") as file:
            return why_no_image(file.read(SNIFFED_BYTES))
    return None if kind else (SkipKind.NOT_AN_IMAGE, "Its name does not end like that of an image.")


def kind_of_name(name: str) -> bool | None:
    """Return whether a file name ends like an image's; None if it has no suffix, so that its content decides.

    What does not start with a letter (`scan.2024`, `1.2.840.1`) is not a suffix.
    """
    stem, dot, end = name.rpartition("/")[2].rpartition(".")
    suffix = dot + end.lower() if stem else ""
    return True if suffix in _SUFFIXES else False if _SUFFIX.fullmatch(suffix) else None


def why_no_image(start: bytes) -> tuple[SkipKind, str] | None:
    """Return why a file that starts with these bytes is not taken for an image, or None if it is one."""
    try:
        format_of(start)
    except errors.ImageFormatError as error:
        return SkipKind.UNSUPPORTED_FORMAT, str(error)
    except errors.ImageUnreadableError:
        return SkipKind.NOT_AN_IMAGE, "Its name has no suffix, and its content is not an image."
    return None


def is_hidden(name: str) -> bool:
    """Return whether a file or folder name is hidden, or belongs to the operating system or a storage server."""
    return name.startswith(".") or name.lower() in _SYSTEM_NAMES


def escape_name(name: str) -> str:
    r"""Return a file name as valid Unicode without control characters; `unescape_name` reverses it.

    Bytes that are not UTF-8 (lone surrogates in `name`, see `os.fsdecode`) and control characters become `\xNN`, one
    for each byte. A backslash that already starts such a sequence becomes `\x5c`. Other names do not change.
    """
    if name.isprintable() and "\\x" not in name:
        return name
    name = _ESCAPED.sub(r"\\x5cx\1", name)
    return _escape_all(name)


def _escape_all(name: str) -> str:
    return "".join(_escape(char) if unicodedata.category(char) in ("Cc", "Cs") else char for char in name)


def _escape(char: str) -> str:
    try:
        data = char.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:  # a surrogate that stands for no byte
        data = char.encode("utf-8", "surrogatepass")
    return "".join(f"\\x{byte:02x}" for byte in data)


def unescape_name(name: str) -> str:
    """Return the file name that `escape_name` escaped."""
    parts = _ESCAPED.split(name)  # text and hexadecimal digits in turn
    data = b"".join(
        bytes.fromhex(part) if number % 2 else part.encode("utf-8", "surrogatepass")
        for number, part in enumerate(parts)
    )
    return data.decode("utf-8", "surrogateescape")


def path_spellings(path: str) -> tuple[str, ...]:
    r"""Return what a path in a table can mean, the most likely first.

    The path as it is; `~` stands for the home folder, `\xNN` for a byte, as in the tables that fc7 writes, and
    backslashes separate folders, as on Windows; a name can be in another Unicode form than that of the file.
    """
    slashes = path.replace("\\", "/")
    forms = (unicodedata.normalize(form, slashes) for form in ("NFC", "NFD"))
    home = os.path.expanduser(path)  # noqa: PTH111 - Path.expanduser raises if there is no such user
    return tuple(dict.fromkeys((path, home, unescape_name(path), slashes, *forms)))


def locate(folder: Path, path: str) -> Path:
    """Return the file that a path of a table in `folder` means, which need not exist."""
    # os.path.exists returns False for a name that no file can have, for which Path.exists raises.
    found = (folder / each for each in path_spellings(path) if os.path.exists(folder / each))  # noqa: PTH110
    return next(found, folder / path)


def label_of(name: str) -> str:
    r"""Return the class that a folder name or a label stands for: valid Unicode without control characters, as NFC.

    macOS and some archives write names in the form NFD, so that one name has two spellings that look alike. Unlike
    `escape_name`, a label that is escaped already (`M\xfcller`) does not change. Spaces at its ends are removed,
    as they are in a table.
    """
    label = unicodedata.normalize("NFC", _escape_all(name))
    return label.strip() or label


def split_of_folder(name: str) -> str | None:
    """Return the split that a folder is named after: "train", "val" or "test"; None for another name."""
    return _SPLIT_FOLDERS.get(name.lower())


def class_of_path(path: str) -> str | None:
    """Return the class of an image by its path in a folder of class folders, with forward slashes; None if it has none.

    It is the first folder (`cat/1.jpg`), or the second if the first one is named after a split (`train/cat/1.jpg`).
    """
    folders = path.split("/")[:-1]
    if len(folders) > 1 and split_of_folder(folders[0]) is not None:
        return label_of(folders[1])
    return label_of(folders[0]) if folders else None


def without_wrapper(folder: Path) -> Path:
    """Return the folder that contains the class or split folders: archives often have one folder around them.

    A folder that has only one folder in it is left for that one, if it contains folders and no images. A folder that
    cannot be listed is returned as it is.
    """
    try:
        while True:
            found = [entry for entry in folder.iterdir() if not is_hidden(entry.name)]
            if len(found) != 1 or not found[0].is_dir() or split_of_folder(found[0].name) is not None:
                return folder
            inner = [entry for entry in found[0].iterdir() if not is_hidden(entry.name)]
            if not any(entry.is_dir() for entry in inner) or any(kind_of_name(entry.name) for entry in inner):
                return folder
            folder = found[0]
    except OSError:
        return folder


def shorten(name: str) -> str:
    """Return a name of at most 300 characters for a report; longer ones are cut in the middle."""
    half = (_MAX_NAME - 3) // 2
    return name if len(name) <= _MAX_NAME else f"{name[:half]}...{name[-half:]}"


def summarize(skipped: Iterable[Skipped]) -> list[str]:
    """Return a line for each category, the most frequent first: the number of files and the first of them."""
    skipped = list(skipped)
    lines = []
    for kind, count in Counter(item.kind for item in skipped).most_common():
        first = [item for item in skipped if item.kind is kind][:_EXAMPLES]
        more = f" and {count - len(first):,} more" if count > len(first) else ""
        if kind is SkipKind.HIDDEN:
            names = ", ".join(sorted({shorten(item.path.rpartition("/")[2]) for item in first}))
            lines.append(f"{count:,} ignored ({kind.words}): {names}{more}")
        else:
            names = "; ".join(f"{shorten(item.path)}: {item.reason.rstrip('.')}" for item in first)
            lines.append(f"{count:,} skipped ({kind.words}): {names}{more}")
    return lines
