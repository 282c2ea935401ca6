"""Reports of bulk operations. They stay correct when the operation is interrupted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

from index.records import AddOutcome
from model_store.image_files import SkipKind, Skipped


class AddCounts(Protocol):
    """The counters that `count_outcomes` increases."""

    seen: int
    added: int
    replaced: int
    unchanged: int


@dataclass(slots=True)
class BuildReport:
    """Progress and result of adding many images. seen = added + replaced + unchanged + len(skipped).

    metadata_changed: images that the index already had, and that got other metadata.
    skipped: the files that were not added. ignored: hidden and system files, which are not counted in `seen`.
    interrupted: Ctrl-C ended the operation early.
    """

    total: int = 0
    seen: int = 0
    added: int = 0
    replaced: int = 0
    unchanged: int = 0
    metadata_changed: int = 0
    skipped: list[Skipped] = field(default_factory=list)
    ignored: list[Skipped] = field(default_factory=list)
    interrupted: bool = False

    def skip(self, item: Skipped) -> None:
        """Record a file that is not added."""
        if item.kind is SkipKind.HIDDEN:
            self.ignored.append(item)
        else:
            self.skipped.append(item)
            self.seen += 1


@dataclass(slots=True)
class ReembedReport:
    """Progress and result of re-embedding. total: images that had no vector of the model; skipped: (key, reason)."""

    total: int = 0
    embedded: int = 0
    skipped: list[tuple[str, str]] = field(default_factory=list)
    interrupted: bool = False


def count_outcomes(report: AddCounts, outcomes: Sequence[AddOutcome]) -> None:
    """Count added, replaced and unchanged images in the report."""
    report.added += outcomes.count(AddOutcome.ADDED)
    report.replaced += outcomes.count(AddOutcome.REPLACED)
    report.unchanged += outcomes.count(AddOutcome.UNCHANGED)
    report.seen += len(outcomes)


def count_kinds(skipped: Sequence[Skipped]) -> dict[str, int]:
    """Return how many files were skipped for each kind of reason, the most frequent first."""
    return {kind.value: count for kind, count in Counter(item.kind for item in skipped).most_common()}


@contextmanager
def interruptible(report: BuildReport | ReembedReport) -> Iterator[None]:
    """End the block at Ctrl-C without an exception, and record the interruption in the report."""
    try:
        yield
    except KeyboardInterrupt:
        report.interrupted = True
