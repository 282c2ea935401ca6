"""Metadata of many images: labels from class folders, and tables with a row for each image.

Guarantees: a table that is not valid is rejected before any image is added, with the line. What an image already has
stays, unless the table or the class folder gives the same field another value.
Out of scope: deleting fields; `PATCH /v1/images/{key}` does that.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import date, datetime
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Final

from index.errors import MetadataError
from index.interface import ImageIndex
from index.records import AddOutcome, NewImage, encode_metadata
from model_store.errors import TableError
from model_store.image_files import class_of_path, escape_name, is_hidden, label_of, path_spellings, without_wrapper
from model_store.table_file import JSON_SUFFIXES, PATH_COLUMNS, Row, decode_text, find_column, json_rows, read_rows

METADATA_FILE: Final = "metadata.jsonl"
"""The name of a table inside a folder or an archive; its paths are relative to its own folder."""
MAX_TABLE_BYTES: Final = 32_000_000  # of a table in an archive
LABEL: Final = "label"
_PATH_COLUMNS: Final = (*PATH_COLUMNS, "key")
_NUMBER = re.compile(r"-?(0|[1-9]\d{0,15})(\.\d+)?([eE][+-]?\d{1,3})?")
_BOOLEANS: Final = {"true": True, "false": False}

Values = dict[str, Any]


@dataclass(slots=True)
class ImageMetadata:
    """What is known of the images of a source. labels: take `label` from class folders. rows: by path in the source.

    wrapper: the path, with a slash, of the folder that contains the class folders; "" if it is the source itself.
    unmatched: rows whose path is not that of a file in the source, such as "line 3: cat/9.jpg".
    """

    labels: bool = False
    wrapper: str = ""
    rows: dict[str, Values] = field(default_factory=dict)
    unmatched: list[str] = field(default_factory=list)

    def of(self, name: str) -> Values:
        """Return the metadata of the image at this path in the source, escaped by `escape_name`."""
        label = class_of_path(name.removeprefix(self.wrapper)) if self.labels else None
        return ({} if label is None else {LABEL: label}) | self.rows.get(name, {})


def read_metadata(file: Path, folder: Path | None, *, labels: bool) -> ImageMetadata:
    """Read a table with a column `path`; every other column becomes a field of the metadata.

    folder: of the images. A path is relative to it or to the folder of the table, or absolute. None: the images are not
    in a local folder, and every path is relative to their source. Backslashes can separate folders, as on Windows.
    Raises TableError, MissingExtraError.
    """
    metadata = ImageMetadata(labels, _wrapper(folder))
    for where, path, values in _parse(file, read_rows(file), typed=file.suffix.lower() in (*JSON_SUFFIXES, ".parquet")):
        name = _name_in_source(path) if folder is None else _name_in(folder, file, path)
        if name is None:
            metadata.unmatched.append(f"{where}: {path}")
        else:
            _add(file, metadata.rows, (where, escape_name(name), values))
    return metadata


def read_inner_metadata(folder: Path, *, labels: bool) -> ImageMetadata:
    """Read the files METADATA_FILE in a folder and below; their paths are relative to their own folder.

    Raises TableError.
    """
    metadata = ImageMetadata(labels, _wrapper(folder))
    for file in sorted(folder.rglob(METADATA_FILE)):
        base = file.parent.relative_to(folder)
        if any(is_hidden(part) for part in base.parts):
            continue
        for where, path, values in _parse(file, read_rows(file), typed=True):
            name = _name_in(file.parent, file, path)
            if name is None:
                metadata.unmatched.append(f"{where} of {file}: {path}")
            else:
                _add(file, metadata.rows, (where, escape_name((base / name).as_posix()), values))
    return metadata


def _wrapper(folder: Path | None) -> str:
    """Return the path of the folder with the class folders, as in training, in the form of `ImageMetadata.wrapper`."""
    if folder is None or (root := without_wrapper(folder)) == folder:
        return ""
    return escape_name(f"{root.relative_to(folder).as_posix()}/")


def archive_rows(name: str, content: bytes) -> dict[str, Values]:
    """Return the metadata by path in an archive, from its entry `name`, a file METADATA_FILE. Raises TableError."""
    base = name[: -len(METADATA_FILE)]
    rows: dict[str, Values] = {}
    for where, path, values in _parse(name, json_rows(name, decode_text(name, content)), typed=True):
        _add(name, rows, (where, base + escape_name(_name_in_source(path)), values))
    return rows


def _name_in_source(path: str) -> str:
    """Return a path in an archive or a bucket, with forward slashes and without `./`."""
    return "/".join(part for part in path.replace("\\", "/").split("/") if part not in ("", "."))


def _add(file: Path | str, rows: dict[str, Values], row: tuple[str, str, Values]) -> None:
    where, name, values = row
    if rows.get(name, values) != values:
        raise TableError(file, f"{where} describes {name} again, with other values. Keep one of the two rows")
    rows[name] = values


def _parse(file: Path | str, rows: Iterable[Row], *, typed: bool) -> list[tuple[str, str, Values]]:
    """Return (where, path, metadata) of each row. typed: values have types; otherwise, the columns decide."""
    found: list[tuple[str, str, Values]] = []
    for where, row in rows:
        column = find_column(row, _PATH_COLUMNS)
        if column is None:
            raise TableError(file, f"{where} has no path. Expected: a column path, and the fields of the metadata")
        values = {name: _plain(value) for name, value in row.items() if name != column}
        if LABEL in values:
            values[LABEL] = label_of(str(values[LABEL]))
        found.append((where, str(row[column]), {name: value for name, value in values.items() if value is not None}))
    if not found:
        raise TableError(file, "it has no rows")
    if not typed:
        _infer_types([values for _, _, values in found])
    for where, _, values in found:
        try:
            encode_metadata(values)
        except MetadataError as error:
            raise TableError(file, f"{where}: {error}") from error
    return found


def _plain(value: object) -> object:
    if isinstance(value, float) and value != value:  # noqa: PLR0124 - NaN stands for a missing number
        return None
    return value.isoformat() if isinstance(value, date | datetime) else value


def _infer_types(rows: Sequence[Values]) -> None:
    """Turn the columns of a CSV that only have numbers, or only true and false, into these types."""
    for name in {name for values in rows for name in values if name != LABEL}:
        texts = [values[name] for values in rows if name in values]
        if all(_NUMBER.fullmatch(text) for text in texts):
            for values in rows:
                if name in values:
                    values[name] = float(values[name]) if set(values[name]) & set(".eE") else int(values[name])
        elif all(text.lower() in _BOOLEANS for text in texts):
            for values in rows:
                if name in values:
                    values[name] = _BOOLEANS[values[name].lower()]


def _name_in(folder: Path, file: Path, path: str) -> str | None:
    """Return the path of a file within `folder`, with forward slashes, or None if it is not there."""
    # Without following links, like the paths of the listed files; then the folder itself may be a link.
    ways: tuple[Callable[[Path], str], ...] = (os.path.abspath, os.path.realpath)
    for written, base, whole in product(path_spellings(path), (folder, file.parent), ways):
        try:
            found, root = Path(whole(base / written)), Path(whole(folder))
            if found.is_relative_to(root) and found.is_file():
                return found.relative_to(root).as_posix()
        except (OSError, ValueError):  # for example, the name is too long or contains a zero byte
            continue
    return None


def add_with_metadata(
    index: ImageIndex, images: Sequence[NewImage], metadata: Mapping[str, Values], unchanged: Iterable[str]
) -> tuple[list[AddOutcome], int]:
    """Add images with their metadata, and merge that of the images whose bytes are already indexed.

    metadata: by key. unchanged: keys of these images. Returns the outcomes of `images`, and how many of `unchanged` got
    other metadata. Raises as `ImageIndex.add_many` does.
    """
    new = []
    for image in images:
        key = image.key or image.sha256
        values = metadata.get(key)
        new.append(image if values is None else replace(image, metadata=merged(index, key, values)))
    return list(index.add_many(new)) if new else [], merge(index, metadata, unchanged)


def merged(index: ImageIndex, key: str, values: Values) -> Values:
    """Return the metadata that an image is to have: what it has in the index, and `values`."""
    return (index.get(key).metadata if index.contains(key) else {}) | values


def merge(index: ImageIndex, metadata: Mapping[str, Values], keys: Iterable[str]) -> int:
    """Merge metadata into that of indexed images, and return how many changed. metadata: by key."""
    changed = 0
    for key in keys:
        values = metadata.get(key, {})
        before = index.get(key).metadata if values else {}
        if before | values != before:
            index.change_metadata(key, partial(_union, values))
            changed += 1
    return changed


def _union(values: Values, current: Values) -> Values:
    return current | values
