"""List class folders, and the images in them.

Guarantees: every file that is not used is reported with the reason.
Out of scope: splits (sources.py).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from model_store.errors import DatasetError
from model_store.image_files import SkipKind, Skipped, escape_name, find_images, is_hidden, label_of
from model_store.training.data.image_file import ImageFile


def class_folders(folder: Path, skip: Callable[[Skipped], None] = lambda _: None) -> list[Path]:
    """Return the class folders directly in `folder`, in alphabetical order, and call `skip` for everything else.

    Hidden and system folders such as `__MACOSX` are not classes. A link to another folder is one.
    Raises DatasetError if the folder cannot be listed.
    """
    found = []
    try:
        entries = sorted(folder.iterdir())
    except OSError as error:
        raise DatasetError(
            f"The folder {folder} cannot be read: {error.strerror}. Check the path and its permissions."
        ) from error
    for entry in entries:
        if is_hidden(entry.name):
            skip(Skipped(escape_name(str(entry)), "Hidden and system files are ignored.", SkipKind.HIDDEN))
        elif not entry.is_dir():
            skip(Skipped(escape_name(str(entry)), "It is not in a class folder.", SkipKind.NOT_AN_IMAGE))
        elif entry.is_symlink() and folder.resolve().is_relative_to(entry.resolve()):
            skip(Skipped(escape_name(str(entry)), "The link leads to a folder that contains it.", SkipKind.LINK))
        else:
            found.append(entry)
    return found


def image_files(root: Path, folder: Path, skip: Callable[[Skipped], None] = lambda _: None) -> list[ImageFile]:
    """Return the images of a class folder. Names are escaped by `escape_name`; the label is that of `label_of`."""
    label = label_of(folder.name)
    return [
        ImageFile(escape_name(path.relative_to(root).as_posix()), label, path) for path in find_images(folder, skip)
    ]
