"""The files of a vector space: memory-mapped segments, so that an index of any size is opened in seconds.

Every full segment of a searcher is written to a file, and small segments are merged into large ones (see
index/search/merging.py); the vectors after the last full segment, at most 1,024, are read from the catalog when the
index is opened. Files are derived from the catalog and can be deleted while the index is closed.
Guarantees: a file is used only if the catalog has all of its live vectors with the same checksums, also after a kill.
The vectors of all other files are read from the catalog, and compared with its checksums. If a merged file and the
files that it replaces exist after a kill, the merged file is used. Rows that were damaged on disk are found in the
background after the start, and read from the catalog.
Out of scope: which process may write (see index/catalog/lock.py), and when files are written (see code_builder.py).
"""

from __future__ import annotations

import contextlib
import secrets
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.catalog.catalog import Catalog
from index.errors import IndexCorruptError
from index.records import checksum
from index.search.merging import runs_to_write
from index.search.product_code import ProductCode
from index.search.searcher import Searcher
from index.search.segment import CodeBlock, Segment
from index.search.segment_file import (
    SUFFIX,
    SegmentFile,
    checksums_of,
    codes_path,
    open_segment,
    read_codes,
    write_codes,
    write_segment,
)

_DERIVED = (SUFFIX, ".codes", ".code")
_BLOCK = 1024
_ROWS_AT_ONCE = 256


class VectorFiles:
    """The files of one vector space in the folder of an index."""

    def __init__(self, folder: Path, identity: str, fingerprint: str) -> None:
        """identity: of the catalog. fingerprint: of the model that made the vectors."""
        self._folder, self._fingerprint = folder, fingerprint
        self._owner = f"{identity} {fingerprint}"

    def load(self, searcher: Searcher, catalog: Catalog, space: int, code: ProductCode | None) -> bool:
        """Fill an empty searcher with all vectors of `space`.

        code: that of `fast`, already installed in the searcher. Returns whether all mapped rows have codes.
        Raises IndexCorruptError if a vector in the catalog does not match its checksum.
        """
        ids, checksums = catalog.vector_checksums(space)
        position, with_codes = 0, True
        for start, end, file in self._open_for(ids):
            rows = np.searchsorted(file.ids, ids[start:end])
            if start < position or not np.array_equal(file.ids[rows], ids[start:end]):
                continue  # it overlaps with the file before, or lacks some vectors
            if not np.array_equal(file.checksums[rows], checksums[start:end]):
                continue
            _load_from_catalog(searcher, catalog, ids[position:start], checksums[position:start])
            alive = np.zeros(len(file.ids), np.bool_)
            alive[rows] = True
            segment = Segment.of_file(file, alive)
            if code is not None:
                block = CodeBlock(code, segment.capacity)
                codes = read_codes(file.path, code.name, block.memory.nbytes)
                if codes is not None:
                    block.restore(codes)
                    segment.blocks = {"fast": block}
                with_codes = with_codes and codes is not None
            searcher.adopt(segment)
            position = end
        _load_from_catalog(searcher, catalog, ids[position:], checksums[position:])
        return with_codes

    def save(self, searcher: Searcher, stop: threading.Event) -> None:
        """Write and merge segments that need it, and missing codes; map their rows; delete unused files.

        Only one thread at a time may call it. Raises OSError if the disk is full; then the rest of the rows stays in
        memory, and small files stay as they are.
        """
        for run in runs_to_write(searcher.segments):
            if stop.is_set():
                return
            self._write(searcher, run)
        for segment in searcher.segments:
            if stop.is_set():
                return
            _write_missing_codes(segment)
        for unfinished in self._folder.glob(f".{self._prefix}*"):  # left by a process that was killed
            unfinished.unlink(missing_ok=True)
        used = {segment.file.path for segment in searcher.segments if segment.file is not None}
        for path in self._folder.glob(f"{self._prefix}*"):
            if path.with_suffix(SUFFIX) not in used:
                path.unlink(missing_ok=True)

    def repair_rows(self, searcher: Searcher, catalog: Path, stop: threading.Event) -> int:
        """Compare all mapped rows with their checksums; return how many live rows were damaged.

        A segment with damaged rows gets those of the catalog, in memory, and its file is deleted. Uses half of the time
        of one core.
        """
        repaired = 0
        for segment in searcher.segments:
            damaged = []
            for rows in _damaged_rows(segment):
                damaged += rows
                if stop.is_set():
                    return repaired
                stop.wait(0.001)
            damaged = [row for row in damaged if segment.alive[row]]
            if damaged and segment.file is not None:
                copy = Segment(segment.capacity)
                copy.append(segment.ids, segment.rows)
                with Catalog(catalog, read_only=True) as reader:
                    existing = reader.describe([int(segment.ids[row]) for row in damaged])
                    for row in damaged:
                        if (vector_id := int(segment.ids[row])) in existing:
                            copy.rows[row] = reader.vectors([vector_id])[0]
                searcher.replace([segment], copy)
                remove(segment.file.path)
                repaired += len(damaged)
        return repaired

    def find_damage(self) -> Iterator[tuple[Path, str]]:
        """Yield each damaged file, and what is damaged."""
        for path in sorted(self._folder.glob(f"{self._prefix}*{SUFFIX}")):
            try:
                file = open_segment(path, self._owner)
            except FileNotFoundError:
                continue  # the server that has the index open merged it meanwhile
            if file is None:
                yield path, "is damaged, or belongs to another index"
                continue
            segment = Segment.of_file(file, np.ones(len(file.ids), np.bool_))
            if damaged := [row for rows in _damaged_rows(segment) for row in rows]:
                yield path, f"has a damaged copy of vector {file.ids[damaged[0]]}"

    @property
    def _prefix(self) -> str:
        return f"{self._fingerprint[:16]}-"

    def _open_for(self, ids: NDArray[np.int64]) -> list[tuple[int, int, SegmentFile]]:
        """Open the files with some of these ids, ascending: return the range of ids that each one should have.

        Sorted by the first id; of files with the same first id, the one with the most ids comes first.
        """
        opened = []
        for path in self._folder.glob(f"{self._prefix}*{SUFFIX}"):
            with contextlib.suppress(OSError):  # otherwise its vectors are read from the catalog
                if (file := open_segment(path, self._owner)) is not None:
                    start, end = np.searchsorted(ids, [file.ids[0], file.ids[-1] + 1]).tolist()
                    if start < end:
                        opened.append((start, end, file))
        return sorted(opened, key=lambda each: (each[0], -each[1], len(each[2].ids)))

    def _write(self, searcher: Searcher, run: Sequence[Segment]) -> None:
        """Write the live rows of neighboring segments to one file, map them, and delete the previous files.

        Raises OSError.
        """
        whole = len(run) == 1 and run[0].full and not run[0].mostly_dead
        rows = [np.arange(run[0].capacity)] if whole else searcher.live_rows(run)
        if not any(map(len, rows)):
            return  # removed meanwhile
        ids = np.concatenate([segment.ids[numbers] for segment, numbers in zip(run, rows, strict=True)])
        checksums = np.concatenate([_checksums(segment, numbers) for segment, numbers in zip(run, rows, strict=True)])
        path = self._folder / f"{self._prefix}{secrets.token_hex(8)}{SUFFIX}"
        file = write_segment(path, self._owner, ids, checksums, _blocks(run, rows))
        mapped = Segment.of_file(file, np.ones(len(ids), np.bool_))
        if whole:
            mapped.identity = run[0].identity
        if not searcher.replace(run, mapped, None if whole else rows):
            remove(path)
            return
        _write_missing_codes(mapped)
        for segment in run:
            if segment.file is not None:
                remove(segment.file.path)


def remove(path: Path) -> None:
    """Delete the file of a segment and its codes. Running searches keep using the mapped rows."""
    path.unlink(missing_ok=True)
    codes_path(path).unlink(missing_ok=True)


def remove_unfinished_files(folder: Path) -> None:
    """Delete files that a killed process left unfinished. No other thread may be writing files of the index."""
    for path in folder.iterdir():
        if path.name.startswith(".") and any(f"{suffix}." in path.name for suffix in _DERIVED):
            path.unlink(missing_ok=True)


def remove_unused_files(folder: Path, fingerprints: list[str]) -> None:
    """Delete the files of all spaces except those of these models."""
    used = tuple(fingerprint[:16] for fingerprint in fingerprints)
    for path in folder.iterdir():
        name = path.name.removeprefix("fast-")
        derived = path.suffix in _DERIVED and not name.startswith(".")
        if (derived and not name.startswith(used)) or path.name == "vectors.snapshot":
            path.unlink(missing_ok=True)


def _checksums(segment: Segment, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
    """Return the checksums of some rows. Those of a file are not computed again, so that damage to it is found."""
    if segment.file is not None:
        return segment.file.checksums[rows]
    return np.concatenate([checksums_of(block) for block in _blocks([segment], [rows])])


def _blocks(segments: Sequence[Segment], rows: Sequence[NDArray[np.int64]]) -> Iterator[NDArray[np.float16]]:
    """Yield these rows of each segment, a few at a time."""
    for segment, numbers in zip(segments, rows, strict=True):
        for start in range(0, len(numbers), _ROWS_AT_ONCE):
            yield segment.rows[numbers[start : start + _ROWS_AT_ONCE]]


def _write_missing_codes(segment: Segment) -> None:
    block = segment.blocks.get("fast")
    if segment.file is not None and block is not None and isinstance(block.code, ProductCode):
        name = block.code.name
        if not _has_codes(segment.file.path, name):
            write_codes(segment.file.path, name, block.memory)


def _has_codes(path: Path, name: str) -> bool:
    try:
        with codes_path(path).open("rb") as file:
            return f'"code": "{name}"'.encode() in file.read(4096)
    except OSError:
        return False


def _damaged_rows(segment: Segment) -> Iterator[list[int]]:
    """Yield the damaged rows of each part of a mapped segment."""
    if segment.file is None:
        return
    for start in range(0, segment.capacity, _ROWS_AT_ONCE):
        rows, expected = (part[start : start + _ROWS_AT_ONCE] for part in (segment.rows, segment.file.checksums))
        yield [start + n for n, (row, crc) in enumerate(zip(rows, expected, strict=True)) if checksum(row.data) != crc]


def _load_from_catalog(
    searcher: Searcher, catalog: Catalog, ids: NDArray[np.int64], checksums: NDArray[np.uint32]
) -> None:
    for start in range(0, len(ids), _BLOCK):
        block, rows = ids[start : start + _BLOCK], catalog.vectors(ids[start : start + _BLOCK].tolist())
        for vector_id, row, expected in zip(block.tolist(), rows, checksums[start : start + _BLOCK], strict=True):
            if checksum(row.data) != expected:
                key = catalog.describe([vector_id])[vector_id][0]
                raise IndexCorruptError(catalog.path, f"the vector of {key!r} differs from its checksum")
        searcher.apply(block, rows)


def bytes_on_disk(folder: Path) -> int:
    """Return the total size of the files of an index."""
    total = 0
    for file in folder.iterdir():
        with contextlib.suppress(FileNotFoundError):  # the file was replaced meanwhile
            total += file.stat().st_size
    return total
