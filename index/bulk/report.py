"""Reports of bulk operations, kept correct when the operation is interrupted."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(slots=True)
class BuildReport:
    """What became of a folder's images. seen = added + replaced + unchanged + len(skipped) when it ran to its end.

    skipped: (path, reason). interrupted: Ctrl-C ended it early.
    """

    total: int = 0
    seen: int = 0
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    skipped: list[tuple[Path | str, str]] = field(default_factory=list)
    interrupted: bool = False


@dataclass(slots=True)
class ReembedReport:
    """What became of the images that had no vector of the model; skipped: (key, reason)."""

    total: int = 0
    embedded: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False


@contextmanager
def interruptible(report: BuildReport | ReembedReport) -> Iterator[None]:
    """End the block at Ctrl-C, and note it in the report."""
    try:
        yield
    except KeyboardInterrupt:
        report.interrupted = True
