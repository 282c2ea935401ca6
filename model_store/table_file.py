"""Read the rows of a table: CSV, JSON Lines or Parquet.

Guarantees: a file that cannot be read as a table raises a TableError that names the file, the line and how to fix it.
CSV can be separated by commas, semicolons or tabs, which the header decides, or by what a first line such as `sep=;`
says. Text is UTF-8, UTF-16 or UTF-32, with or without a byte order mark; other encodings are never guessed.
Out of scope: the meaning of the columns.
References: RFC 4627, section 3 (UTF-8, UTF-16 and UTF-32 are told apart by the NUL bytes of the first characters).
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

from model_store.errors import MissingExtraError, TableError

JSON_SUFFIXES: Final = (".jsonl", ".ndjson")
TABLE_SUFFIXES: Final = (".csv", ".tsv", *JSON_SUFFIXES, ".parquet")
PATH_COLUMNS: Final = ("path", "file_name", "filename", "file", "image")
"""Names of the column with the path of an image."""
_DELIMITERS: Final = ",;\t"
_PARQUET_ROWS: Final = 10_000  # read at a time
_MAX_FIELD: Final = 1_000_000  # characters of one value
_SEPARATOR_LINE: Final = re.compile(r'"?sep=([^"\r\n])"?\s*', re.IGNORECASE)  # Excel writes and obeys it
_SAVE_AS: Final = 'In a spreadsheet, save it as "CSV UTF-8"'
_OTHER_FORMATS: Final = {
    b"PK\x03\x04": f"a zip file, such as an Excel or LibreOffice document. {_SAVE_AS}",
    b"\xd0\xcf\x11\xe0": f"an Excel document. {_SAVE_AS}",
    b"\x1f\x8b": "compressed with gzip. Unpack it with gunzip",
    b"PAR1": "a Parquet file. Rename it so that its name ends in .parquet",
}

Row = tuple[str, dict[str, Any]]  # where it is, such as "line 3"; values by column


def is_table(path: Path) -> bool:
    """Return whether a file name ends like that of a table."""
    return path.suffix.lower() in TABLE_SUFFIXES


def read_rows(file: Path) -> Iterator[Row]:
    """Yield the rows of a table. Empty values of a CSV are left out, and blank lines are ignored.

    Raises TableError, MissingExtraError (Parquet requires pyarrow).
    """
    suffix = file.suffix.lower()
    if suffix == ".parquet":
        yield from _parquet_rows(file)
    elif suffix in JSON_SUFFIXES:
        yield from json_rows(file, read_text(file))
    elif suffix in TABLE_SUFFIXES:
        yield from _csv_rows(file, read_text(file))
    else:
        raise TableError(file, f"its name must end in one of {', '.join(TABLE_SUFFIXES)}")


def read_text(file: Path) -> str:
    """Return the text of a table. Raises TableError if it cannot be read or is not Unicode."""
    try:
        content = file.read_bytes()
    except OSError as error:
        raise TableError(file, error.strerror or str(error)) from error
    return decode_text(file, content)


def decode_text(file: Path | str, content: bytes) -> str:
    """Return the text of the table `file`. Raises TableError if it is not Unicode."""
    for start, found in _OTHER_FORMATS.items():
        if content.startswith(start):
            raise TableError(file, f"its content is not text, but {found}")
    encoding = json.detect_encoding(content)
    name = encoding.removesuffix("-sig").upper()
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise TableError(
            file,
            f"line {line} is not {name} (byte 0x{content[error.start]:02X}). {_SAVE_AS}, or convert it: "
            "iconv -f WINDOWS-1252 -t UTF-8 OLD > NEW",
        ) from error
    if "\0" in text:  # there is no byte order mark, and the first characters are not ASCII
        raise TableError(
            file,
            f"it has NUL bytes, so it is not {name}, but probably UTF-16 without a byte order mark. {_SAVE_AS}, or "
            "convert it: iconv -f UTF-16LE -t UTF-8 OLD > NEW",
        )
    return text


def json_rows(file: Path | str, text: str) -> Iterator[Row]:
    """Yield the rows of JSON Lines. Raises TableError for a line that is not a JSON object."""
    for number, line in enumerate(text.split("\n"), start=1):  # str.splitlines also splits at U+2028, valid in JSON
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise TableError(file, f"line {number} is not valid JSON: {error}") from error
        if not isinstance(row, dict):
            raise TableError(file, f"line {number} is not a JSON object, but {line.strip()[:40]!r}")
        yield f"line {number}", row


def _csv_rows(file: Path, text: str) -> Iterator[Row]:
    lines = list(io.StringIO(text, newline=""))  # str.splitlines also splits at U+2028, valid in a file name
    number, first = next(((number, line) for number, line in enumerate(lines) if line.strip()), (0, ""))
    if separator := _SEPARATOR_LINE.fullmatch(first):
        lines[number] = "\n"  # so that the numbers of the other lines stay
        delimiter = separator[1]
    else:
        delimiter = max(_DELIMITERS, key=first.count)
    csv.field_size_limit(_MAX_FIELD)
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(filter(None, reader), [])]
        if not any(header):
            raise TableError(file, "it is empty. The first line must name the columns")
        if repeated := next((name for name in header if name and header.count(name) > 1), None):
            raise TableError(file, f"it has two columns {repeated!r}")
        for values in reader:
            if not any(value.strip() for value in values):
                continue
            where = f"line {reader.line_num}"
            if len(values) > len(header):
                raise TableError(
                    file,
                    f"{where} has {len(values)} values, but the header has {len(header)} columns. Put values that "
                    f"contain {delimiter!r} in double quotes",
                )
            named = zip(header, values, strict=False)
            yield where, {name: value.strip() for name, value in named if name and value.strip()}
    except csv.Error as error:
        raise TableError(file, f"line {reader.line_num} is not valid CSV: {error}") from error


def _parquet_rows(file: Path) -> Iterator[Row]:
    pyarrow = import_pyarrow()
    try:
        number = 0
        with pyarrow.parquet.ParquetFile(file) as table:
            for batch in table.iter_batches(_PARQUET_ROWS):
                for row in batch.to_pylist():
                    number += 1
                    yield f"row {number}", {name: value for name, value in row.items() if value is not None}
    except (OSError, pyarrow.ArrowException) as error:
        raise TableError(file, f"it is not a valid Parquet file: {' '.join(str(error).split())}") from error


def import_pyarrow() -> Any:
    """Return the module pyarrow, with `pyarrow.parquet`. Raises MissingExtraError."""
    try:
        import pyarrow  # noqa: PLC0415 - an extra, needed only for Parquet
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("pyarrow", "export") from None
    return pyarrow


def find_column(columns: dict[str, Any] | list[str], names: tuple[str, ...]) -> str | None:
    """Return the column with one of these names, upper or lower case; the first name that exists wins."""
    lower = {column.lower(): column for column in columns}
    return next((lower[name] for name in names if name in lower), None)
