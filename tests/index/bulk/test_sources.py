"""Listing and reading the images of folders and URIs."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.bulk.sources import FolderSource, RemoteSource, open_source
from index.errors import SourceError


def test_folder_and_its_uri_list_and_read_the_same_files(tmp_path: Path) -> None:
    for name in ("b/2.png", "a/1.JPG", "a/notes.txt", ".hidden/3.png", "c.png", "b/.4.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    folder, remote = FolderSource(tmp_path), RemoteSource(tmp_path.as_uri() + "/")
    assert list(folder.list()) == list(remote.list()) == ["a/1.JPG", "b/2.png", "c.png"]
    assert folder.read("b/2.png") == remote.read("b/2.png") == b"b/2.png"
    for source in (folder, remote):
        source.check()
        with pytest.raises(OSError, match="gone"):
            source.read("gone.png")


def test_missing_sources_raise_source_error(tmp_path: Path) -> None:
    missing = tmp_path / "missing"
    for location in (str(missing), missing.as_uri()):
        source = open_source(location)
        with pytest.raises(SourceError, match="does not exist"):
            source.check()
        with pytest.raises(SourceError, match="missing"):
            list(source.list())
    with pytest.raises(SourceError, match=r"wat://x.*s3://BUCKET"):
        open_source("wat://x")
