"""Archives as people send them: each bad entry costs one entry, and limits are checked before anything is read."""

from __future__ import annotations

import io
import stat
import struct
import tarfile
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from index.bulk.archive import ArchiveLimits, SkippedEntryError, count_images, read_entries
from index.errors import DamagedArchiveError, ImageArchiveError
from model_store.image_files import SkipKind
from tests.index.bulk.archives import Files, changed, images, tarred, zipped
from tests.support import pictures

LIMITS = ArchiveLimits(entries=1_000_000, image_bytes=100_000, bytes=3_000_000)
GOOD = images(4)
Found = tuple[list[str], dict[str, SkipKind], str]


@pytest.fixture
def read(tmp_path: Path) -> Callable[[bytes], Found]:
    """Return the names of readable entries, the others with the kind of reason, and where the archive is damaged."""

    def read_archive(data: bytes) -> Found:
        path = tmp_path / "archive"
        path.write_bytes(data)
        names, skipped, damage = [], {}, ""
        try:
            for entry in read_entries(path, LIMITS):
                try:
                    if entry.skip is not None:
                        raise entry.skip
                    content = entry.read()
                    assert content == GOOD.get(entry.name, content)
                    names.append(entry.name)
                except SkippedEntryError as error:
                    skipped[entry.name] = error.kind
        except DamagedArchiveError as error:
            damage = error.where
        counted = sum(kind is not SkipKind.HIDDEN for kind in skipped.values())
        assert count_images(path, LIMITS) in (len(names) + counted, len(names) + counted + bool(damage))
        return names, skipped, damage

    return read_archive


class _Pipe(io.RawIOBase):
    """A file that cannot seek, so that a zip file gets data descriptors."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:  # type: ignore[override]
        self.data += data
        return len(data)


def zip_with_data_descriptors(files: Files) -> bytes:
    pipe = _Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_BZIP2) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return bytes(pipe.data)


def zip64(files: Files) -> bytes:
    data = io.BytesIO()
    with zipfile.ZipFile(data, "w") as archive:
        for name, content in files.items():
            with archive.open(zipfile.ZipInfo(name), "w", force_zip64=True) as file:
                file.write(content)
    return data.getvalue()


def with_comment(data: bytes, comment: bytes) -> bytes:
    return data[:-2] + struct.pack("<H", len(comment)) + comment


@pytest.mark.parametrize(
    "data",
    [
        zipped(GOOD),
        zip64(GOOD),
        zip_with_data_descriptors(GOOD),
        b"#!/bin/sh\n" * 99 + zipped(GOOD),
        zipped(GOOD) + b"more",
        with_comment(zipped(GOOD), b"PK\5\6" + bytes(40) + b"PK\5\6"),
        tarred(GOOD),
        tarred(GOOD, form=tarfile.PAX_FORMAT),
        tarred(GOOD, "w:gz"),
        tarred(GOOD, "w:gz") + b"padding",
        tarred(GOOD, "w:bz2"),
    ],
    ids=["zip", "zip64", "descriptors", "prefix", "suffix", "comment", "tar", "pax", "gz", "gz+", "bz2"],
)
def test_whole_archives_are_read(read: Callable[[bytes], Found], data: bytes) -> None:
    assert read(data) == (list(GOOD), {}, "")


def link(info: zipfile.ZipInfo) -> None:
    if info.filename == "birds/1.jpg":
        info.create_system, info.external_attr = 3, (stat.S_IFLNK | 0o777) << 16


ZIP, TAR = zipped(GOOD), tarred(GOOD)
CENTRAL = ZIP.find(b"birds/1.jpg", ZIP.find(b"PK\1\2")) - 46
LOCAL = ZIP.find(b"birds/1.jpg") - 30
HEADER = TAR.find(b"birds/1.jpg")


@pytest.mark.parametrize(
    ("data", "kind"),
    [
        (changed(ZIP, LOCAL + 300), SkipKind.DAMAGED_ENTRY),  # the content
        (changed(ZIP, LOCAL), SkipKind.DAMAGED_ENTRY),
        (changed(ZIP, CENTRAL), SkipKind.DAMAGED_ENTRY),
        (changed(ZIP, CENTRAL + 16), SkipKind.DAMAGED_ENTRY),  # the checksum
        (changed(ZIP, CENTRAL + 10, b"\x63\0"), SkipKind.DAMAGED_ENTRY),  # the method
        (changed(ZIP, CENTRAL + 24, struct.pack("<L", 100)), SkipKind.DAMAGED_ENTRY),  # the size
        (changed(ZIP, CENTRAL + 42, struct.pack("<L", 2**31)), SkipKind.DAMAGED_ENTRY),  # the offset
        (changed(ZIP, CENTRAL + 8, b"\1"), SkipKind.ENCRYPTED),
        (zipped(GOOD, link), SkipKind.LINK),
        (changed(TAR, HEADER), SkipKind.DAMAGED_ENTRY),
    ],
)
def test_a_bad_entry_costs_one_entry(read: Callable[[bytes], Found], data: bytes, kind: SkipKind) -> None:
    names, skipped, damage = read(data)
    assert names == [name for name in GOOD if name != "birds/1.jpg"]
    assert list(skipped.values()) == [kind]
    assert not damage


@pytest.mark.parametrize("pack", [zipped, tarred], ids=["zip", "tar"])
def test_other_entries_are_reported_with_the_reason(
    read: Callable[[bytes], Found], pack: Callable[[Files], bytes]
) -> None:
    picture = pictures.jpeg(1, 64, 64)
    good = {"birds/0.jpg": GOOD["birds/0.jpg"], "no suffix": picture, "scan.2024": picture, "ü/ß.JFIF": picture}
    bad = {
        "../x.jpg": SkipKind.UNSAFE_PATH,
        "a/../../x.jpg": SkipKind.UNSAFE_PATH,
        "/etc/x.jpg": SkipKind.UNSAFE_PATH,
        "a\\..\\x.jpg": SkipKind.UNSAFE_PATH,
        "C:x.jpg": SkipKind.UNSAFE_PATH,
        "read me.txt": SkipKind.NOT_AN_IMAGE,
        "Makefile": SkipKind.NOT_AN_IMAGE,
        "more.zip": SkipKind.NOT_AN_IMAGE,
        "__MACOSX/birds/._0.jpg": SkipKind.HIDDEN,
        "birds/.DS_Store": SkipKind.HIDDEN,
        "large.jpg": SkipKind.TOO_LARGE,
    }
    contents = dict.fromkeys(bad, b"x") | {"large.jpg": bytes(100_001)}
    folder = {"folder.jpg/": b""} if pack is zipped else {}
    names, skipped, damage = read(pack(contents | good | {"./empty.jpg": b""} | folder))
    assert (sorted(names), damage) == (sorted([*good, "empty.jpg"]), "")
    assert skipped == bad


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        (tarfile.SYMTYPE, SkipKind.LINK),
        (tarfile.LNKTYPE, SkipKind.LINK),
        (tarfile.FIFOTYPE, SkipKind.SPECIAL_FILE),
        (tarfile.CHRTYPE, SkipKind.SPECIAL_FILE),
        (tarfile.DIRTYPE, None),
    ],
)
def test_links_and_devices_are_reported(read: Callable[[bytes], Found], kind: bytes, expected: SkipKind | None) -> None:
    data = tarred({"x.jpg": b""}, type=kind, linkname="/etc/passwd")
    assert read(data) == ([], {} if expected is None else {"x.jpg": expected}, "")


def test_names_are_escaped_and_may_be_long(read: Callable[[bytes], Found]) -> None:
    latin, long = "a/M\udcfcller.jpg", "d" * 150 + "/" + "e" * 120 + ".jpg"
    for form in (tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        assert read(tarred({latin: b"", long: b"", "tab\t.jpg": b""}, form=form))[0] == [
            "a/M\\xfcller.jpg",
            long,
            "tab\\x09.jpg",
        ]
    cp437 = zipped({"M_ller.jpg": b""}).replace(b"M_ller", b"M\x81ller")
    utf8 = zipped({"M__ller.jpg": b""}).replace(b"M__ller", "Müller".encode())
    assert read(cp437)[0] == read(utf8)[0] == read(zipped({"Müller.jpg": b""}))[0] == ["Müller.jpg"]
    flagged = zipped({"Mü.jpg": b""}).replace("Mü".encode(), b"M\xff\xfe")
    assert read(flagged)[0] == ["M\\xff\\xfe.jpg"]


GZ = tarred(images(40), "w:gz")


@pytest.mark.parametrize(
    ("data", "where"),
    [
        (TAR[: HEADER + 700], "in the entry birds/1.jpg"),
        (TAR[: HEADER + 100], "after the entry birds/0.jpg"),
        (GZ[: len(GZ) // 2], "in the entry"),
        (changed(GZ, len(GZ) - 7), "after the entry birds/39.jpg"),
    ],
)
def test_everything_before_the_damage_is_read(read: Callable[[bytes], Found], data: bytes, where: str) -> None:
    names, _, damage = read(data)
    assert names
    assert names == list(images(40))[: len(names)]
    assert damage.startswith(where)


def test_a_missing_end_marker_is_reported(read: Callable[[bytes], Found]) -> None:
    names, skipped, damage = read(TAR[:HEADER])
    assert (names, list(skipped.values()), damage) == (["birds/0.jpg"], [SkipKind.DAMAGED_ENTRY], "")


def describing_header(size: int) -> bytes:
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, size
    return header.tobuf() + bytes(10_000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (zipped({"bomb.jpg": bytes(4_000_000)}), r"unpacks to more than 3,000,000 bytes \(at entry bomb.jpg"),
        (zipped({f"{n}.txt": bytes(400_000) for n in range(9)}), "unpacks to more than 3,000,000 bytes"),
        (tarred({"bomb.jpg": bytes(4_000_000)}, "w:gz"), "unpacks to more than 3,000,000 bytes"),
        (describing_header(8_000_000_000), "header of 8,000,000,000 bytes"),
        (ZIP[:-30], "zip file without the directory at its end"),
        (with_comment(ZIP, b"")[:-22] + b"PK\5\6\1\0\0\0" + ZIP[-14:], "several parts"),
        (b"\xfd7zXZ\0" + bytes(600), "compressed with xz"),
        (b"\x28\xb5\x2f\xfd" + bytes(600), "Zstandard"),
        (b"7z\xbc\xaf\x27\x1c" + bytes(600), "7z"),
        (pictures.jpeg(1), "damaged or has an unknown format"),
        (b"", "damaged or has an unknown format"),
    ],
)
def test_limits_and_other_files_are_rejected(tmp_path: Path, data: bytes, message: str) -> None:
    (tmp_path / "archive").write_bytes(data)
    with pytest.raises(ImageArchiveError, match=message):
        count_images(tmp_path / "archive", LIMITS)


def test_two_million_entries_are_rejected_before_the_directory_is_read(tmp_path: Path) -> None:
    path, count = tmp_path / "archive", 2_000_000
    header = zipped({"x": b""})
    central = header[header.find(b"PK\1\2") : header.find(b"PK\5\6")]
    end64 = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, count, count, len(central) * count, 31)
    locator = struct.pack("<4sLQL", b"PK\6\7", 0, 31 + len(central) * count, 1)
    end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF, 0)
    path.write_bytes(header[:31] + central * count + end64 + locator + end)
    started = time.perf_counter()
    tracemalloc.start()
    with pytest.raises(ImageArchiveError, match="more than 1,000,000 entries"):
        count_images(path, LIMITS)
    assert tracemalloc.get_traced_memory()[1] < 1_000_000
    tracemalloc.stop()
    assert time.perf_counter() - started < 1
    for number, allowed in ((20_001, False), (20_000, True)):
        end = struct.pack("<4s4H2LH", b"PK\5\6", 0, 0, 9, number & 0xFFFF, len(central) * number, 31, 0)
        announced = end if allowed else end[:10] + b"\t\0" + end[12:]  # the end record announces nine
        path.write_bytes(header[:31] + central * number + announced)
        if allowed:
            assert count_images(path, ArchiveLimits(20_000, 100, 100)) == number
        else:
            with pytest.raises(ImageArchiveError, match="more than 20,000 entries"):
                count_images(path, ArchiveLimits(20_000, 100, 100))
