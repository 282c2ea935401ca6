"""Which segments of a searcher are written to files, and which are merged or compacted.

New rows are appended to a small segment, so that few rows are in memory. But each segment takes time in every search.
Therefore neighboring segments are merged into one file once their live rows nearly fill a large segment.
Guarantees: a row is written about twice: to a small file and to a large one. Segments that were filled faster than they
could be written are merged without small files. A large segment is not copied to add a few rows to it.
Out of scope: writing files (see index/local/vector_files.py), and replacing segments during searches (see searcher.py).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from index.search.segment import SEGMENT_ROWS, TAIL_ROWS, CodeBlock, Segment

SAVED_ROWS = TAIL_ROWS // 2  # a smaller segment is not written alone; an opened index reads its rows from the catalog
_FIRST_ROWS = 256  # of the first segment
_LARGEST_SHARE = 0.75  # the largest share of the merged rows that one of the segments may have


def next_capacity(live: int, rows: int) -> int:
    """Return the capacity of the next segment of a searcher with `live` rows, to which `rows` rows are added now."""
    if rows >= SEGMENT_ROWS:
        return SEGMENT_ROWS  # which they fill immediately
    needed = max(_FIRST_ROWS, live, rows)
    return min(SEGMENT_ROWS, TAIL_ROWS, 1 << (needed - 1).bit_length())


def runs_to_write(segments: Sequence[Segment]) -> list[Sequence[Segment]]:
    """Return runs of neighboring segments of a searcher. The live rows of each run are to be written to one file.

    segments: all that the searcher has. Rows are only appended to the last one, and only until it is full.
    """
    closed = len(segments) if segments and segments[-1].full else len(segments) - 1
    live = [segment.live for segment in segments]
    runs: list[Sequence[Segment]] = []
    start = 0
    while start < closed:
        end, total = start, 0
        while end < closed and total + live[end] <= SEGMENT_ROWS:
            total += live[end]
            end += 1
        # More small segments than that are merged although they have few rows.
        complete = end < closed or total > SEGMENT_ROWS - TAIL_ROWS or end - start > SEGMENT_ROWS // TAIL_ROWS
        if not complete or max(live[start:end]) > _LARGEST_SHARE * total:
            end = start + 1
        if end > start + 1 or _worth_writing(segments[start]):
            runs.append(segments[start:end])
        start = end
    return runs


def join_codes(segments: Sequence[Segment], rows: Sequence[NDArray[np.int64]]) -> dict[str, CodeBlock]:
    """Return blocks with the codes of these rows of each segment, one for each code that all of the segments have."""
    joined = {}
    for mode, first in segments[0].blocks.items():
        blocks = [segment.blocks.get(mode) for segment in segments]
        same = [block for block in blocks if block is not None and block.code is first.code]
        if len(same) == len(segments) and all(map(_has_all, same, segments)):
            joined[mode] = CodeBlock.of(list(zip(same, rows, strict=True)))
    return joined


def compact(segments: Sequence[Segment]) -> tuple[Segment, ...]:
    """Return segments without dead ones, and with smaller copies of those in memory that are mostly dead.

    Mapped segments that are mostly dead are written again in the background: see `runs_to_write`.
    """
    compacted = []
    for segment in segments:
        if not segment.mostly_dead or (segment.mapped and segment.live):
            compacted.append(segment)
        elif segment.live:
            compacted.append(_copy_live(segment))
    return tuple(compacted)


def _copy_live(segment: Segment) -> Segment:
    rows = np.flatnonzero(segment.alive)
    copy = Segment(len(rows))
    copy.blocks = join_codes([segment], [rows])
    copy.append(segment.ids[rows], segment.rows[rows])
    copy.alive[:] = True
    return copy


def _worth_writing(segment: Segment) -> bool:
    """Return whether a segment that gets no more rows, and is not merged, needs a new file."""
    if segment.mapped:
        return segment.mostly_dead
    # One that is not full has room in memory for rows that it never gets.
    return segment.live > 0 and (segment.count >= SAVED_ROWS or not segment.full)


def _has_all(block: CodeBlock, segment: Segment) -> bool:
    return block.count == segment.count
