"""`fc7 index snapshot`, `restore`, `verify`, `export`, `duplicates`: copies of the index, the way back, what is in it.

Does not: need the server; a running one does not mind any of them but `restore` and `--repair`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from index.catalog.backup import restore_snapshot, take_snapshot
from index.filters import parse_where
from index.local.verify import verify
from index.milvus.export import export_from_milvus
from index.records import IndexOptions
from service.cli.index.commands import Home
from service.factory import check_local, milvus_address, open_index_of, read_stats_of
from service.settings import load_settings

_MOST_LISTED = 20
Where = Annotated[
    list[str] | None, typer.Option(help="Those that fit only, such as label:cat or year>=2020; repeatable.")
]


def snapshot(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the snapshot.", show_default=False)],
    home: Home = None,
) -> None:
    """Copy the whole index, as it is now, into the new folder DIR; a running server goes on writing."""
    settings = load_settings(home=home)
    check_local(settings, "no snapshot of it can be taken here", "Use Milvus's own: milvus-backup create -n NAME")
    with _bar("copying") as advance:
        manifest = take_snapshot(settings.home, target, advance=advance)
    _say(f"{target}: {manifest.images} images, {manifest.size / 1e6:,.1f} MB. To go back: fc7 index restore {target}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="SNAPSHOT", help="Folder of a snapshot.", show_default=False)],
    home: Home = None,
) -> None:
    """Make a snapshot the index of FC7_HOME, which must have none yet."""
    settings = load_settings(home=home)
    check_local(settings, "a snapshot is of an index in FC7_HOME", "Unset FC7_INDEX_URI to restore it there.")
    with _bar("copying") as advance:
        manifest = restore_snapshot(source, settings.home, advance=advance)
    model = f", made by {manifest.model}" if manifest.model else ""
    _say(f"{settings.home / 'index'}: {manifest.images} images, {manifest.vectors} vectors{model}.")


def verify_command(
    folder: Annotated[
        Path | None, typer.Argument(metavar="[SNAPSHOT]", help="A snapshot; the index of FC7_HOME by default.")
    ] = None,
    home: Home = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged pictures and vectors, make anew what can be made.")
    ] = False,
) -> None:
    """Compare everything in the index with its checksums. Exit code 1 when something is not as it was written."""
    settings = load_settings(home=home)
    if folder is None:
        check_local(
            settings, "Milvus keeps checksums of its own", "A snapshot can be verified: fc7 index verify SNAPSHOT"
        )
    place = folder or settings.home
    with _bar("looking") as advance:
        report = verify(place, repair=repair, advance=advance)
    for finding in report.findings[:_MOST_LISTED]:
        name = f"{finding.key}: " if finding.key is not None else ""
        _say(f"{name}{finding.problem}.\n    {finding.fix}")
    if len(report.findings) > _MOST_LISTED:
        _say(f"... and {len(report.findings) - _MOST_LISTED} more")
    counts = f"{report.images} images, {report.pictures} pictures, {report.vectors} vectors"
    if not report.findings:
        _say(f"{place}: {counts}: all as they were written.")
        return
    mended = f", {report.repaired} mended" if repair else ""
    _say(f"{place}: {counts}: {len(report.findings)} damaged{mended}.")
    raise typer.Exit(1)


def export(
    target: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="New file.", show_default=False)],
    where: Where = None,
    home: Home = None,
) -> None:
    """Write keys, metadata and vectors to a Parquet file; a running server goes on writing."""
    from index.catalog.export import export_parquet  # noqa: PLC0415

    settings = load_settings(home=home)
    condition = parse_where(where or [])
    with _bar("writing") as advance:
        address = milvus_address(settings)
        if address is None:
            count = export_parquet(settings.home, target, where=condition, advance=advance)
        else:
            count = export_from_milvus(address, target, where=condition, advance=advance)
    _say(f"{target}: {count} images, {target.stat().st_size / 1e6:,.1f} MB.")


def duplicates(
    threshold: Annotated[float, typer.Option(min=0, help="The largest Euclidean distance of a pair.")],
    limit: Annotated[int, typer.Option(min=1, help="How many pairs: the nearest ones.")] = 1000,
    where: Where = None,
    home: Home = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a pair.")] = False,
) -> None:
    """List the pairs of images that are nearly the same, nearest first."""
    settings = load_settings(home=home)
    stats = read_stats_of(settings)
    with open_index_of(settings, IndexOptions(stats.fingerprint, stats.model, read_only=True)) as index:
        pairs = index.duplicates(threshold, limit, where=parse_where(where or []))
    for pair in pairs:
        line = {"first": pair.first, "second": pair.second, "distance": pair.distance}
        typer.echo(json.dumps(line) if as_json else f"{pair.distance:9.3f}  {pair.first}  {pair.second}")
    _say(f"{len(pairs)} pairs at most {threshold:g} apart, of {stats.vectors} images.")


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None]]:
    """Show a bar on a terminal; give what moves it."""
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, total: progress.update(task, completed=done, total=total)
