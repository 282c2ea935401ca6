"""Tables as people export them: formats, separators, encodings, and errors that name the line."""

from __future__ import annotations

from pathlib import Path

import pyarrow
import pytest
from pyarrow import parquet

from model_store.errors import TableError
from model_store.table_file import read_rows

ROWS = [{"path": "a.jpg", "label": "gull"}, {"path": "b, c.jpg", "label": "høne"}]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.csv", 'path,label\na.jpg,gull\n"b, c.jpg",høne\n'.encode()),
        ("t.csv", '\ufeffpath;label\r\na.jpg;gull\r\n\r\n"b, c.jpg"; høne \r\n'.encode()),
        ("t.tsv", "path\tlabel\na.jpg\tgull\nb, c.jpg\thøne".encode()),
        ("t.csv", b'sep=;\r\npath;label\r\na.jpg;gull\r\n"b, c.jpg";h\xc3\xb8ne\r\n'),
        ("t.csv", '\ufeff"Sep=|"\n\npath|label\na.jpg|gull\nb, c.jpg|høne\n'.encode()),
        ("t.csv", 'sep=\t\npath\tlabel\na.jpg\tgull\n"b, c.jpg"\thøne\n'.encode("utf-16")),
        ("t.jsonl", '{"path": "a.jpg", "label": "gull"}\n\n{"path": "b, c.jpg", "label": "høne"}'.encode()),
    ],
)
def test_the_same_rows_in_every_format(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [row for _, row in read_rows(tmp_path / name)] == ROWS


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_every_form_of_unicode_with_and_without_a_byte_order_mark(tmp_path: Path, encoding: str, mark: str) -> None:
    text = f"{mark}path;label\r\na.jpg;gull\r\nb, c.jpg;høne\r\n"
    (tmp_path / "t.csv").write_bytes(text.encode(encoding))
    assert [row for _, row in read_rows(tmp_path / "t.csv")] == ROWS


def test_lines_are_counted_from_the_start_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("sep=;\n\npath;label\na.jpg;gull\n")
    assert [where for where, _ in read_rows(tmp_path / "t.csv")] == ["line 4"]


def test_parquet_rows(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([*ROWS, {"path": "d", "label": None}]), tmp_path / "t.parquet")
    assert list(read_rows(tmp_path / "t.parquet"))[1:] == [("row 2", ROWS[1]), ("row 3", {"path": "d"})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"path,label\na.jpg,gull\nM\xfcller.jpg,gull\n", r"line 3 is not UTF-8 \(byte 0xFC\).*iconv"),
        ("t.csv", "中,path\na,b\n".encode("utf-16-le"), 'NUL bytes.*probably UTF-16 .*save it as "CSV UTF-8"'),
        ("t.csv", "path,label\na.jpg,gull\n".encode("utf-16")[:-1], r"line 2 is not UTF-16 .*save it as"),
        ("t.csv", b"PK\x03\x04 and more", r'an Excel or LibreOffice document.*save it as "CSV UTF-8"'),
        ("t.jsonl", b"\x1f\x8b\x08\0", r"compressed with gzip\. Unpack it"),
        ("t.csv", b"PAR1\x15\x04", r"a Parquet file\. Rename it"),
        ("t.csv", b"", "is empty"),
        ("t.csv", b"path,path\n", "two columns 'path'"),
        ("t.csv", b"path,label\na,b.jpg,gull\n", r"line 2 has 3 values.*double quotes"),
        ("t.csv", b'path,label\n"a.jpg,gull\n', "not valid CSV"),
        ("t.jsonl", b'{"path": "a"}\n{"path":\n', "line 2 is not valid JSON"),
        ("t.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("t.jsonl", b"[" * 100_000, "line 1 is not valid JSON"),
        ("t.parquet", b"PAR1", "not a valid Parquet file"),
        ("t.xlsx", b"", r"must end in one of \.csv"),
    ],
)
def test_a_bad_table_is_an_error_that_names_the_file_and_line(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(TableError, match=message) as raised:
        list(read_rows(tmp_path / name))
    assert str(tmp_path / name) in str(raised.value)


def test_a_missing_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="No such file"):
        list(read_rows(tmp_path / "none.csv"))
