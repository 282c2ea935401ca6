"""Which files of a folder are taken for images, how the others are reported, and how names are escaped."""

from __future__ import annotations

import os
import socket
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from model_store.decoding.formats import SUFFIXES
from model_store.errors import DatasetError
from model_store.image_files import (
    SkipKind,
    Skipped,
    escape_name,
    find_images,
    kind_of_name,
    shorten,
    summarize,
    unescape_name,
)
from tests.support import pictures

_NOBODY = 65534


@contextmanager
def unprivileged() -> Iterator[None]:
    """Access files as another user inside the block if the tests run as root, for whom no file is unreadable."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(_NOBODY)
    try:
        yield
    finally:
        os.seteuid(0)


def found_in(folder: Path) -> tuple[list[str], dict[str, SkipKind]]:
    skipped: list[Skipped] = []
    images = [path.relative_to(folder).as_posix() for path in find_images(folder, skipped.append)]
    names = [item.path.removeprefix(f"{folder}/") for item in skipped]
    assert len(set(names)) == len(names), "each file is reported once"
    assert all(item.reason.endswith(".") for item in skipped)
    return images, dict(zip(names, (item.kind for item in skipped), strict=True))


def touch(folder: Path, *names: str, content: bytes = b"") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def test_images_are_sorted_by_folder_and_every_suffix_counts(tmp_path: Path) -> None:
    touch(tmp_path, "b/2.JPG", "b/10.png", "a.tiff", "c.webp", "z/y/x.gif", "b.bmp", "folder.jpg/inside.png")
    expected = ["a.tiff", "b/10.png", "b/2.JPG", "b.bmp", "c.webp", "folder.jpg/inside.png", "z/y/x.gif"]
    assert found_in(tmp_path) == (expected, {})
    for suffix in (*SUFFIXES, ".JFIF", ".Heic"):
        assert kind_of_name(f"a/b.c{suffix}")


def test_every_other_file_is_reported_once_with_its_reason(tmp_path: Path) -> None:
    touch(tmp_path, "a.jpg", "notes.txt", "b/raw.cr2", "empty", "scan.2024", ".hidden.jpg", ".git/x.jpg", "Thumbs.db")
    touch(tmp_path, "__MACOSX/a/._1.jpg", "b/@eaDir/1.jpg", "b/.DS_Store")
    touch(tmp_path, "jpeg", "1.2.840", "photo of 3. May", content=pictures.jpeg(1, 8, 8))
    touch(tmp_path, "psd", content=b"8BPS" + bytes(30))
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere")
    (tmp_path / "linked.jpg").symlink_to(tmp_path / "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "socket.jpg"))
        images, skipped = found_in(tmp_path)
    assert images == ["1.2.840", "a.jpg", "jpeg", "linked.jpg", "photo of 3. May"]
    hidden = (".hidden.jpg", ".git", "Thumbs.db", "__MACOSX", "b/@eaDir", "b/.DS_Store")
    assert skipped == {
        **dict.fromkeys(("notes.txt", "b/raw.cr2", "empty", "scan.2024"), SkipKind.NOT_AN_IMAGE),
        **dict.fromkeys(hidden, SkipKind.HIDDEN),
        **dict.fromkeys(("loop", "self.jpg", "gone.jpg"), SkipKind.LINK),
        **dict.fromkeys(("pipe.jpg", "socket.jpg"), SkipKind.SPECIAL_FILE),
        "psd": SkipKind.UNSUPPORTED_FORMAT,
    }


@pytest.fixture
def locked_folder(tmp_path: Path) -> Iterator[Path]:
    touch(tmp_path, "a/1.jpg", "b/2.jpg", "c/3.jpg", "d")
    for name in ("b", "d"):
        (tmp_path / name).chmod(0)
    for folder in (tmp_path, *tmp_path.parents):
        if folder.stat().st_uid == os.geteuid() and folder != Path("/"):
            folder.chmod(folder.stat().st_mode | 0o055)
    yield tmp_path
    (tmp_path / "b").chmod(0o755)


def test_a_locked_folder_or_file_is_reported_and_the_rest_is_found(locked_folder: Path) -> None:
    with unprivileged():
        images, skipped = found_in(locked_folder)
        assert images == ["a/1.jpg", "c/3.jpg"]
        assert skipped == {"b": SkipKind.UNREADABLE, "d": SkipKind.UNREADABLE}
        with pytest.raises(DatasetError, match="Permission denied"):
            list(find_images(locked_folder / "b"))
    with pytest.raises(DatasetError, match="nowhere"):
        list(find_images(locked_folder / "nowhere"))


def test_folders_of_any_depth_are_listed(tmp_path: Path) -> None:
    here = os.open(tmp_path, os.O_RDONLY)
    try:
        for _ in range(1500):
            os.mkdir("d", dir_fd=here)
            above, here = here, os.open("d", os.O_RDONLY, dir_fd=here)
            os.close(above)
            os.close(os.open("1.jpg", os.O_CREAT | os.O_WRONLY, dir_fd=here))
        images, skipped = found_in(tmp_path)
        assert len(images) == 1500
        assert skipped == {}
    finally:
        os.close(here)
        subprocess.run(["rm", "-r", str(tmp_path / "d")], check=True)  # too deep for pytest, which uses shutil.rmtree


def test_a_name_that_is_not_utf8_is_found_and_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"M\xfcller.jpg")
    touch(tmp_path, name, os.fsdecode(b"\xfc.txt"))
    skipped: list[Skipped] = []
    [path] = find_images(tmp_path, skipped.append)
    assert escape_name(path.name) == "M\\xfcller.jpg"
    assert skipped[0].path == f"{tmp_path}/\\xfc.txt"
    assert path.with_name(unescape_name("M\\xfcller.jpg")).exists()


@given(st.binary(max_size=12) | st.text("\\x5cfaü\n\x85\0").map(str.encode))
def test_escaped_names_are_valid_unicode_and_can_be_reversed(raw: bytes) -> None:
    name = os.fsdecode(raw)
    escaped = escape_name(name)
    escaped.encode()  # valid Unicode
    assert not any(ord(char) < 32 or 127 <= ord(char) < 160 for char in escaped)
    assert unescape_name(escaped) == name
    assert escape_name("Müller, 3. Mai\\x.jpg") == "Müller, 3. Mai\\x.jpg", "ordinary names do not change"


def test_a_summary_has_a_line_for_each_kind_with_the_first_names() -> None:
    skipped = [
        Skipped(f"/d/{n}.txt", "Its name does not end like that of an image.", SkipKind.NOT_AN_IMAGE) for n in range(9)
    ]
    skipped += [Skipped("/d/.git", "Hidden.", SkipKind.HIDDEN), Skipped("/d/__MACOSX", "Hidden.", SkipKind.HIDDEN)]
    first, second = summarize(skipped)
    assert first.startswith("9 skipped (not an image file): /d/0.txt: Its name")
    assert first.endswith("and 6 more")
    assert second == "2 ignored (hidden or system file): .git, __MACOSX"
    assert len(shorten("x" * 70_000)) <= 300
