"""Headers of tar files that are made to cost memory or time."""

from __future__ import annotations

import contextlib
import random
import tarfile
import time
import tracemalloc
from pathlib import Path

import pytest

from index.bulk.archive import ArchiveEntry, ArchiveLimits, SkippedEntryError, count_images, read_entries
from index.errors import DamagedArchiveError, ImageArchiveError
from model_store.image_files import SkipKind
from tests.index.bulk.archives import images, tarred

LIMITS = ArchiveLimits(entries=1_000_000, image_bytes=100_000, bytes=100_000_000)
END = bytes(1024)


def block(name: str, content: bytes, kind: bytes = tarfile.REGTYPE) -> bytes:
    header = tarfile.TarInfo(name)
    header.type, header.size = kind, len(content)
    return header.tobuf(tarfile.USTAR_FORMAT) + content + bytes(-len(content) % 512)


def described(records: dict[str, str], kind: bytes = tarfile.XHDTYPE) -> bytes:
    create = tarfile.TarInfo._create_pax_generic_header  # type: ignore[attr-defined]
    return create(records, kind, "utf-8")  # type: ignore[no-any-return]


def entries(folder: Path, data: bytes) -> list[ArchiveEntry]:
    (folder / "archive").write_bytes(data)
    return list(read_entries(folder / "archive", LIMITS))


def test_chains_of_headers_are_rejected(tmp_path: Path) -> None:
    for kind in (tarfile.XHDTYPE, tarfile.XGLTYPE):
        with pytest.raises(ImageArchiveError, match="more than 16 headers for one entry"):
            entries(tmp_path, described({"comment": "x"}, kind) * 2_000 + block("a.jpg", b"abc") + END)
    with pytest.raises(ImageArchiveError, match="more than 16 headers for one entry"):
        entries(tmp_path, block("name", b"a.jpg\0", tarfile.GNUTYPE_LONGNAME) * 2_000 + block("a.jpg", b"abc") + END)


def test_global_headers_and_sparse_maps_cost_neither_memory_nor_time(tmp_path: Path) -> None:
    headers = described({f"key {n}": "value" for n in range(1_500)}, tarfile.XGLTYPE)
    sparse = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.name": "map.jpg"}
    data = (headers + block("a.jpg", b"abc")) * 30
    data += described(sparse) + block("x", b"1000000\n" + b"1\n" * 2_000_000) + block("last.jpg", b"abc") + END
    digits = tarfile.TarInfo("digits")
    digits.type, digits.size = tarfile.XHDTYPE, 64 * 1024
    data = digits.tobuf() + b"1" * digits.size + data
    path = tmp_path / "archive"
    path.write_bytes(data)
    del data
    started = time.perf_counter()
    assert count_images(path, LIMITS) == 32
    assert time.perf_counter() - started < 2
    tracemalloc.start()
    found = {entry.name: entry.skip and entry.skip.kind for entry in read_entries(path, LIMITS)}
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found == {"a.jpg": None, "map.jpg": SkipKind.SPECIAL_FILE, "last.jpg": None}
    assert peak < 2_000_000


def test_sparse_files_of_gnu_tar_are_reported(tmp_path: Path) -> None:
    header = bytearray(block("sparse.jpg", b"", tarfile.GNUTYPE_SPARSE))
    header[124:136] = b"00000001000\0"  # 512 bytes are stored
    header[482] = 1  # the map continues in the next block
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + bytes(504) + b"\1" + bytes(7) + bytes(512) + bytes(512) + block("b.jpg", b"abc") + END
    assert [(entry.name, entry.skip and entry.skip.kind) for entry in entries(tmp_path, data)] == [
        ("sparse.jpg", SkipKind.SPECIAL_FILE),
        ("b.jpg", None),
    ]
    with pytest.raises(DamagedArchiveError, match="inside a header"):
        entries(tmp_path, data[:700])


def test_names_and_sizes_of_pax_headers_count(tmp_path: Path) -> None:
    content = bytearray(block("short", b"abcdef"))
    content[124:136] = b"00000000000\0"
    content[148:156] = b" " * 8
    content[148:156] = b"%06o\0 " % sum(content[:512])
    data = described({"path": "ä/long.jpg", "size": "6"}) + bytes(content) + block("b.jpg", b"abc") + END
    assert [(entry.name, entry.size) for entry in entries(tmp_path, data)] == [("ä/long.jpg", 6), ("b.jpg", 3)]


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_random_damage_raises_only_documented_errors(tmp_path: Path, form: int) -> None:
    data = tarred({f"{'d' * 120}/é {name}": content for name, content in images(3).items()}, form=form)
    chance = random.Random(1)
    for _ in range(200):
        damaged = bytearray(data)
        for _ in range(chance.randint(1, 4)):
            field = chance.choice((0, 124, 156, 257, 345, chance.randrange(512)))
            at = chance.randrange(len(damaged) // 512) * 512 + field
            damaged[at] = chance.choice((0, 49, 120, 103, 83, 76, 255, chance.randrange(256)))
        (tmp_path / "archive").write_bytes(damaged[: chance.randint(600, len(damaged))])
        with contextlib.suppress(ImageArchiveError, DamagedArchiveError):
            for entry in read_entries(tmp_path / "archive", LIMITS):
                with contextlib.suppress(SkippedEntryError):
                    entry.read()
