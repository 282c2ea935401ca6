"""Data sets as tables: CSV, JSON Lines or Parquet with the columns path, label and, optionally, split.

    path,label,split
    photos/heron1.jpg,heron,train
    photos/gull1.jpg,gull,val

Guarantees: paths are relative to the folder of the table. A row without a label, or whose file does not exist, is
skipped and reported. A picture that has two labels, or is in two splits, is an error that names both lines.
Out of scope: pictures with several labels.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from model_store.durable import write_atomic
from model_store.errors import DatasetError, TableError
from model_store.image_files import SkipKind, Skipped, escape_name, is_hidden, label_of, locate, split_of_folder
from model_store.table_file import JSON_SUFFIXES, PATH_COLUMNS, find_column, import_pyarrow, is_table, read_rows
from model_store.training.data.image_file import ALL, SPLIT_ORDER, ImageFile, Source

LABEL_COLUMNS: Final = ("label", "class")
SPLIT_COLUMNS: Final = ("split",)
TABLE: Final = "a table"
"""The kind of a source that is a table."""
_EXPECTED: Final = "Columns are expected as path,label or path,label,split"

LabeledPath = tuple[Path, str, str]  # image file, label, split


@dataclass(slots=True)
class _Rows:
    """The rows read so far."""

    images: dict[str, list[ImageFile]] = field(default_factory=dict)  # by split
    skipped: list[Skipped] = field(default_factory=list)
    seen: dict[Path, tuple[str, str, str]] = field(default_factory=dict)  # where, label and split
    repeated: int = 0


def read_table(file: Path) -> Source:
    """Read a table. Without a column `split`, all its images are in the split `ALL`.

    Raises TableError, DatasetError if none of its files exists.
    """
    rows = _Rows()
    columns: set[str] = set()
    other: dict[str, None] = {}
    for where, row in read_rows(file):
        names = [find_column(row, names) for names in (PATH_COLUMNS, LABEL_COLUMNS, SPLIT_COLUMNS)]
        columns |= {name for name in names if name is not None}
        other |= dict.fromkeys(name for name in row if name not in names)
        _read_row(file, where, row, [None if name is None else row[name] for name in names], rows)
    if not rows.seen:
        if not columns and not other:
            raise TableError(file, f"it has no rows. {_EXPECTED}")
        found = ", ".join([*sorted(columns), *other])
        raise TableError(file, f"no row has a path and a label (columns: {found}). {_EXPECTED}")
    if not rows.images:
        first = rows.skipped[0]
        raise DatasetError(
            f"None of the {len(rows.seen):,} files in {file} exists, for example {first.path}. Paths must be relative "
            f"to the folder of the table, {file.resolve().parent}, or absolute."
        )
    notes = [f"Columns of {file} that are not used: {', '.join(other)}."] if other else []
    if rows.repeated:
        notes.append(f"{rows.repeated:,} rows of {file} repeat a picture with the same label and were ignored.")
    images = {
        split: tuple(items) for split, items in sorted(rows.images.items(), key=lambda item: SPLIT_ORDER.index(item[0]))
    }
    classes = tuple(sorted({label for _, label, _ in rows.seen.values()}))
    return Source(file, TABLE, classes, images, tuple(rows.skipped), tuple(notes))


def tables_in(folder: Path) -> list[Path]:
    """Return the tables directly in a folder, without hidden ones. Raises OSError."""
    return [file for file in sorted(folder.iterdir()) if is_table(file) and not is_hidden(file.name) and file.is_file()]


def read_tables(root: Path, files: Mapping[str, Path]) -> Source:
    """Read the table of each split, such as train/metadata.csv and val/metadata.csv in `root`.

    Raises TableError, DatasetError.
    """
    found = {split: read_table(file) for split, file in files.items()}
    for split, source in found.items():
        if source.is_split and set(source.splits) != {split}:
            raise TableError(source.root, f"it is that of the split {split}, but its column split has other values")
    splits = {}
    for split in sorted(found, key=SPLIT_ORDER.index):
        folder = files[split].parent
        prefix = "" if folder == root else f"{escape_name(folder.relative_to(root).as_posix())}/"
        images = (image for images in found[split].splits.values() for image in images)
        splits[split] = tuple(replace(image, name=prefix + image.name) for image in images)
    return Source(
        root,
        TABLE,
        tuple(sorted({label for source in found.values() for label in source.classes})),
        splits,
        tuple(item for source in found.values() for item in source.ignored),
        tuple(note for source in found.values() for note in source.notes),
    )


def _read_row(file: Path, where: str, row: Iterable[str], values: Sequence[Any], rows: _Rows) -> None:
    """Add a row: its path, label and split. row: the columns that have a value in it. Raises TableError."""
    if isinstance(values[1], list | dict):
        raise TableError(file, f"{where} has a label that is not one name: {values[1]!r}. A picture has one class")
    if isinstance(values[0], list | dict | bytes):
        raise TableError(
            file, f"{where} has a path that is not a file name. Write images inside a table to files first"
        )
    path, label, split = ("" if value is None else str(value).strip() for value in values)
    if not path:
        raise TableError(file, f"{where} has no path (columns with a value: {', '.join(row)}). {_EXPECTED}")
    if not label:
        reason = f"{where} of {file.name} has no label."
        rows.skipped.append(Skipped(escape_name(path), reason, SkipKind.NO_LABEL))
        return
    label = label_of(label)
    chosen = split_of_folder(split) if split else ALL
    if chosen is None:
        raise TableError(file, f"{where} has the split {split!r}. Use train, val or test, or no column split")
    if rows.images and (ALL in rows.images) != (chosen == ALL):
        raise TableError(file, f"{where} {'has no' if chosen == ALL else 'has a'} split, unlike the rows before it")
    found = locate(file.parent, path)
    same = Path(os.path.abspath(found))  # noqa: PTH100 - as in _shown
    if same in rows.seen:
        first, other_label, other_split = rows.seen[same]
        if (other_label, other_split) != (label, chosen):
            what = f"label {other_label!r}" if other_label != label else f"split {other_split}"
            now = repr(label) if other_label != label else chosen
            raise TableError(file, f"{path} has the {what} in {first}, but {now} in {where}. Keep one of the two rows")
        rows.repeated += 1
        return
    rows.seen[same] = (where, label, chosen)
    try:
        exists = found.is_file()
    except OSError:  # for example, the name is too long
        exists = False
    if not exists:
        reason = f"{where} of {file.name} names this file, but it does not exist."
        rows.skipped.append(Skipped(escape_name(str(found)), reason, SkipKind.UNREADABLE))
        return
    rows.images.setdefault(chosen, []).append(ImageFile(escape_name(path), label, found))


def check_new_table(file: Path) -> None:
    """Raise TableError if a table cannot be written to `file`, MissingExtraError if its format requires pyarrow."""
    if not is_table(file):
        raise TableError(file, "its name must end in .csv, .jsonl or .parquet")
    if not file.absolute().parent.is_dir():
        raise TableError(file, f"the folder {file.absolute().parent} does not exist. Create it first")
    if file.suffix.lower() == ".parquet":
        import_pyarrow()


def write_table(file: Path, rows: Iterable[LabeledPath], relative_to: Path | None = None) -> None:
    """Write a table with the columns path, label and split, in the format that the suffix of `file` names.

    relative_to: paths inside this folder are written relative to it, the others absolute. Raises OSError, TableError,
    MissingExtraError (Parquet requires pyarrow).
    """
    base = None if relative_to is None else relative_to.resolve()
    entries = [{"path": escape_name(_shown(path, base)), "label": label, "split": split} for path, label, split in rows]
    check_new_table(file)
    suffix = file.suffix.lower()
    if suffix in JSON_SUFFIXES:
        content = "".join(f"{json.dumps(entry, ensure_ascii=False)}\n" for entry in entries).encode()
    elif suffix == ".parquet":
        content = _parquet(entries)
    else:
        text = io.StringIO(newline="")
        writer = csv.DictWriter(text, ("path", "label", "split"), delimiter="\t" if suffix == ".tsv" else ",")
        writer.writeheader()
        writer.writerows(entries)
        content = text.getvalue().encode()
    write_atomic(file, content)


def _shown(path: Path, base: Path | None) -> str:
    # Not resolved itself: a linked picture keeps the name that the user gave it.
    absolute = Path(os.path.abspath(path))  # noqa: PTH100 - Path.resolve follows links
    return absolute.relative_to(base).as_posix() if base and absolute.is_relative_to(base) else str(absolute)


def _parquet(entries: list[dict[str, str]]) -> bytes:
    pyarrow, stream = import_pyarrow(), io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(entries), stream)
    return stream.getvalue()
