"""`fc7 index snapshot|restore|verify|optimize|export|fields|duplicates`: work with the index as a whole.

They need no server. All of them work while one is running, except `restore`, `optimize`, `verify --repair` and
`duplicates --delete`.
"""

from __future__ import annotations

import json
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from index.catalog.backup import restore_snapshot, take_snapshot
from index.fields import FieldType, field_name
from index.filters import parse_field, parse_where
from index.local import optimize as optimization
from index.local import verify as verification
from index.milvus.export import export_from_milvus
from index.records import IndexOptions
from service.api.schemas.duplicates import DuplicatesAnswer
from service.cli import console
from service.cli.options import AsJson, Home, Where
from service.factory import check_local, milvus_address, open_index_of, outdated_note, read_stats_of
from service.settings import load_settings


def snapshot(
    target: Annotated[Path, typer.Argument(metavar="DIR", help="New folder for the snapshot.", show_default=False)],
    home: Home = None,
) -> None:
    """Copy the whole index to a new folder; also while a server is running."""
    settings = load_settings(home=home)
    check_local(settings, "no snapshot of it can be taken here", "Use Milvus's own: milvus-backup create -n NAME")
    with console.ProgressBar("copying", "bytes") as bar:
        manifest = take_snapshot(settings.home, target, advance=bar.update)
    console.say(f"{target}: {manifest.images} images, {manifest.size / 1e6:,.1f} MB.")
    console.next_step(f"fc7 index verify {target}; to restore it elsewhere, fc7 index restore {target}")


def restore(
    source: Annotated[Path, typer.Argument(metavar="SNAPSHOT", help="Folder of a snapshot.", show_default=False)],
    home: Home = None,
) -> None:
    """Restore a snapshot into FC7_HOME, which must not have an index yet."""
    settings = load_settings(home=home)
    check_local(settings, "a snapshot is of an index in FC7_HOME", "Unset FC7_INDEX_URI to restore it there.")
    with console.ProgressBar("copying", "bytes") as bar:
        manifest = restore_snapshot(source, settings.home, advance=bar.update)
    model = f" of {manifest.model}" if manifest.model else ""
    console.say(f"{settings.home / 'index'}: {manifest.images} images, {manifest.vectors} vectors{model}.")
    console.next_step("fc7 index verify, then fc7 serve")


def verify(
    folder: Annotated[
        Path | None,
        typer.Argument(metavar="SNAPSHOT", help="Folder of a snapshot.", show_default="the index in FC7_HOME"),
    ] = None,
    home: Home = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Drop damaged pictures and vectors, and rebuild what can be rebuilt.")
    ] = False,
) -> None:
    """Compare everything in the index with its checksums; exit with 1 if something is damaged."""
    settings = load_settings(home=home)
    if folder is None:
        check_local(
            settings, "Milvus keeps checksums of its own", "A snapshot can be verified: fc7 index verify SNAPSHOT"
        )
    target = folder or settings.home
    with console.ProgressBar("verifying", "images") as bar:
        report = verification.verify(target, repair=repair, advance=bar.update)
    lines = []
    for finding in report.findings:
        name = f"{finding.key}: " if finding.key is not None else ""
        lines.append(f"{name}{finding.problem.rstrip('.')}.\n    {finding.fix}")
    console.say_first(lines)
    counts = f"{target}: {report.images} images, {report.pictures} pictures, {report.vectors} vectors"
    if not report.findings:
        console.say(f"{counts}: all checksums match.")
        if report.outdated:
            console.say(outdated_note(report.outdated))
        console.next_step("fc7 index snapshot DIR" if folder is None else f"fc7 index restore {folder}")
        return
    repaired = f", {report.repaired} repaired" if repair else ""
    console.say(f"{counts}: {len(report.findings)} damaged{repaired}.")
    raise typer.Exit(1)


def optimize(*, home: Home = None, as_json: AsJson = False) -> None:
    """Return free disk space, and learn the codes of the search mode fast again; not while a server is running."""
    settings = load_settings(home=home)
    check_local(settings, "Milvus optimizes its own storage", "Compact its collections with Milvus's tools")
    report = optimization.optimize(
        settings.home, fast_from=settings.fast_from or None, step=lambda name: console.say(f"{name}...")
    )
    if as_json:
        console.print_json(asdict(report))
        return
    console.say(
        f"{settings.home / 'index'}: {report.bytes_after / 1e6:,.1f} MB on disk, "
        f"{report.bytes_before / 1e6:,.1f} MB before."
    )
    fast = report.fast_after
    if fast is not None and fast.recall is not None:
        before = report.fast_before
        earlier = "" if before is None or before.recall is None else f", {before.recall:.3f} before"
        console.say(f"The mode fast finds {fast.recall:.3f} of the 10 exact neighbors{earlier}.")
    console.next_step("fc7 index verify, then fc7 serve")


def export(
    target: Annotated[Path, typer.Argument(metavar="FILE.parquet", help="New file.", show_default=False)],
    where: Where = None,
    home: Home = None,
) -> None:
    """Write keys, metadata and vectors to a Parquet file; also while a server is running."""
    from index.catalog.queries.export import export_parquet  # noqa: PLC0415

    settings = load_settings(home=home)
    address = milvus_address(settings)
    write = partial(export_parquet, settings.home) if address is None else partial(export_from_milvus, address)
    with console.ProgressBar("writing", "images") as bar:
        count = write(target, where=parse_where(where or []), advance=bar.update)
    console.say(f"{target}: {count} images, {target.stat().st_size / 1e6:,.1f} MB.")
    console.next_step(f"read it, for example with pandas.read_parquet({str(target)!r})")


def duplicates(
    *,
    threshold: Annotated[float, typer.Option(min=0, help="Largest Euclidean distance between the two images.")],
    limit: Annotated[int, typer.Option(min=1, help="Maximum number of groups to list, largest first.")] = 1000,
    where: Where = None,
    delete: Annotated[
        bool,
        typer.Option(
            "--delete",
            help="Delete the images of each group that are at most the threshold from the one to keep; not while a "
            "server has a local index open.",
        ),
    ] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List groups of images that are nearly the same, largest first, with the best image of each first."""
    settings, filters = load_settings(home=home), parse_where(where or [])
    stats = read_stats_of(settings)
    with open_index_of(settings, IndexOptions(stats.fingerprint, stats.model, read_only=not delete)) as index:
        if delete:
            deleted = index.delete_duplicates(threshold, where=filters)
            if as_json:
                console.print_json({"deleted": deleted})
            console.say(f"{deleted} of {stats.images} images were deleted; the best one of each group was kept.")
            return
        found = index.duplicates(threshold, limit, where=filters, images=max(1, stats.vectors))
    if as_json:
        console.print_json(DuplicatesAnswer.model_validate(asdict(found)).model_dump(mode="json"))
        return
    for group in found.groups:
        keep = group.keep
        typer.echo(f"{group.size} images  keep {console.printable(keep.key)}  {keep.width}x{keep.height}")
        for image in group.others:
            typer.echo(f"{image.distance:9.3f}  {console.printable(image.key)}  {image.width}x{image.height}")
    extra = sum(group.size - 1 for group in found.groups)
    console.say(
        f"{len(found.groups)} groups with {extra} images besides those to keep, linked by pairs at most "
        f"{threshold:g} apart, among {stats.vectors} images."
    )
    if not found.complete:
        console.warn(found.note)
    console.next_step("raise or lower --threshold, or delete the others: --delete")


def fields(
    *,
    field: Annotated[
        str | None, typer.Option(metavar="FIELD", help="Only this field.", show_default="all fields")
    ] = None,
    limit: Annotated[int, typer.Option(min=1, help="Number of values to list for each field.")] = 10,
    where: Where = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List the metadata fields of the images, and their most frequent values; also while a server is running."""
    settings = load_settings(home=home)
    filters, name = parse_where(where or []), None if field is None else field_name(parse_field(field))
    stats = read_stats_of(settings)
    with open_index_of(settings, IndexOptions(stats.fingerprint, stats.model, read_only=True)) as index:
        found = index.fields(limit, where=filters, field=name)
    if as_json:
        console.print_json(asdict(found))
        return
    for each in found.fields:
        console.show(f"{each.name}  {each.type}, {each.images:,} images, {each.distinct:,} values", markup=False)
        for value in each.values:
            text = json.dumps(value.value, ensure_ascii=False) if each.type is not FieldType.STRING else value.value
            console.show(f"{value.count:9,}  {text}", markup=False)
    more = "" if found.complete else "; more fields exist"
    console.say(f"{len(found.fields)} fields of {found.images:,} images{more}.")
    console.next_step("fc7 search IMAGE --where FIELD:VALUE")
