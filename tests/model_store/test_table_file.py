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
        ("t.csv", "path\tlabel\na.jpg\tgull\nb, c.jpg\thøne\n".encode("utf-16")),
        ("t.jsonl", '{"path": "a.jpg", "label": "gull"}\n\n{"path": "b, c.jpg", "label": "høne"}'.encode()),
    ],
)
def test_the_same_rows_in_every_format(tmp_path: Path, name: str, content: bytes) -> None:
    (tmp_path / name).write_bytes(content)
    assert [row for _, row in read_rows(tmp_path / name)] == ROWS


def test_parquet_rows(tmp_path: Path) -> None:
    parquet.write_table(pyarrow.Table.from_pylist([*ROWS, {"path": "d", "label": None}]), tmp_path / "t.parquet")
    assert list(read_rows(tmp_path / "t.parquet"))[1:] == [("row 2", ROWS[1]), ("row 3", {"path": "d"})]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", b"path,label\na.jpg,gull\nM\xfcller.jpg,gull\n", r"line 3 is not UTF-8 \(byte 0xFC\).*iconv"),
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
