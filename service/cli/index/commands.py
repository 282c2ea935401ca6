"""`fc7 index build|reembed|stats`: fill the image index, inspect it, and migrate it to another model.

`build` runs on this machine, or with `--ray` on a cluster (`service.cli.index.ray`).
Out of scope: working through a server. While a server has a local index open, only `stats` works; on Milvus all do.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Final

import typer
from rich.table import Table

from index.bulk.folder import build_index
from index.bulk.metadata import ImageMetadata, read_inner_metadata, read_metadata
from index.bulk.reembed import reembed
from index.bulk.report import BuildReport
from index.bulk.sources import is_uri, without_password
from index.errors import FolderError, SourceError
from index.milvus.reembed import reembed_on_milvus
from index.records import IndexOptions, IndexStats
from model_store.durable import write_atomic
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from service.cli import console
from service.cli.data.unpack import data_folder
from service.cli.index.ray import BuildOptions, build_on_ray, report_values
from service.cli.options import AsJson, Home, ModelOption, find_version
from service.factory import (
    decode_limits,
    milvus_address,
    open_index_of,
    outdated_note,
    read_stats_of,
    runner_options,
)
from service.settings import Settings, load_settings

_INTERRUPTED: Final = "Interrupted. The images counted above are in the index; run the same command again to resume."
app = typer.Typer(name="index", help="Build, inspect, copy and export the image index.", no_args_is_help=True)

BatchSize = Annotated[int, typer.Option(min=1, max=1024, help="Images per run and per commit.")]


RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="ADDRESS",
        help="Embed on a Ray cluster: local (started here), auto (a running one) or HOST:PORT.",
        show_default=False,
    ),
]
Actors = Annotated[
    int | None,
    typer.Option(min=1, help="Number of workers with --ray.", show_default="as many as the cluster has space for"),
]
Labels = Annotated[
    bool,
    typer.Option(
        "--labels/--no-labels",
        help="Store the name of the class folder (cat/1.jpg, train/cat/1.jpg) as the metadata field label.",
    ),
]
MetadataTable = Annotated[
    Path | None,
    typer.Option(
        "--metadata",
        metavar="FILE",
        help="CSV, JSON Lines or Parquet with a column path; the other columns become metadata.",
        show_default="files metadata.jsonl in SOURCE",
    ),
]
SkippedFile = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Write the files that were not added to FILE, one JSON object per line.",
        show_default=False,
    ),
]


@app.command()
def build(
    source: Annotated[
        str,
        typer.Argument(
            metavar="SOURCE",
            help="Folder of images at any depth, or an archive; with --ray also a URI such as s3://...",
        ),
    ],
    *,
    home: Home = None,
    model: ModelOption = None,
    batch_size: BatchSize = 16,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Rebuild for this model; images outside SOURCE are no longer searchable.")
    ] = False,
    key_prefix: Annotated[
        str, typer.Option(metavar="TEXT", help="Text before each key, which is the path within SOURCE.")
    ] = "",
    labels: Labels = True,
    metadata: MetadataTable = None,
    ray: RayAddress = None,
    actors: Actors = None,
    skipped: SkippedFile = None,
    as_json: AsJson = False,
) -> None:
    """Add every image in SOURCE to the index; images that are already indexed are skipped, so it can be resumed."""
    settings = load_settings(home=home)
    if actors is not None and ray is None:
        raise typer.BadParameter("it requires --ray.", param_hint="--actors")
    if ray is None and is_uri(source):
        raise SourceError(
            without_password(source), "without --ray only folders are; `--ray local` reads this on one machine"
        )
    embed: Callable[[str, BuildOptions, Callable[[BuildReport], None]], tuple[BuildReport, IndexStats]]
    if ray is None:  # the model is loaded before an archive is unpacked
        embed = partial(_build_here, settings, _runner(settings, model))
    else:
        embed = partial(build_on_ray, settings, address=ray, actors=actors)
    if not is_uri(source):
        source = str(data_folder(Path(source), settings.home))
    started = time.perf_counter()
    options = BuildOptions(model, batch_size, key_prefix, rebuild, _read_metadata(source, metadata, labels=labels))
    with console.ProgressBar("indexing", "images") as bar:

        def show(so_far: BuildReport) -> None:
            bar.update(so_far.seen, so_far.total)

        report, stats = embed(source, options, show)
    seconds = time.perf_counter() - started
    if skipped is not None:
        _write_skipped(skipped, report)
    if as_json:
        console.print_json(report_values(report, seconds))
    _print_summary(report, stats, seconds)
    _warn_of_unmatched(options.metadata, source)
    if report.interrupted:
        console.exit_interrupted(_INTERRUPTED)
    if len(report.skipped) == report.total:
        raise FolderError(without_password(source), f"has no image that can be read: all {report.total} were skipped.")
    console.next_step("fc7 search IMAGE, or fc7 serve")


def _read_metadata(source: str, table: Path | None, *, labels: bool) -> ImageMetadata:
    """Return the metadata of the images in a folder or URI: from `table`, or else from files in the folder itself."""
    folder = None if is_uri(source) else Path(source)
    if table is not None:
        return read_metadata(table.expanduser(), folder, labels=labels)
    return ImageMetadata(labels) if folder is None else read_inner_metadata(folder, labels=labels)


def _warn_of_unmatched(metadata: ImageMetadata, source: str) -> None:
    if rows := metadata.unmatched:
        console.warn(
            f"{len(rows):,} of the metadata's rows name no file of {without_password(source)}, for example {rows[0]}. "
            "Paths must be relative to it or to the folder of the table."
        )


def _write_skipped(file: Path, report: BuildReport) -> None:
    lines = (json.dumps(item.to_dict(), ensure_ascii=False) for item in [*report.skipped, *report.ignored])
    write_atomic(file, "".join(f"{line}\n" for line in lines).encode())


def _print_summary(report: BuildReport, stats: IndexStats, seconds: float) -> None:
    console.say_skipped([*report.skipped, *report.ignored])
    console.say(
        f"{report.seen} of {report.total} files seen: {report.added} added, {report.replaced} replaced, "
        f"{report.unchanged} unchanged, {len(report.skipped)} skipped, in {seconds:.1f} s "
        f"({report.seen / seconds:.1f} images/s). The index has {stats.vectors} images of {stats.model}."
    )
    if report.metadata_changed:
        console.say(f"{report.metadata_changed} images that were already indexed got other metadata.")
    others = stats.images - report.added - report.replaced - report.unchanged
    if others > 0 and not report.interrupted:
        console.say(
            f"{others} other images were in the index before, and search finds them too. An index of these images "
            "alone requires another FC7_HOME."
        )
    if stats.images > stats.vectors:
        console.warn(
            f"{stats.images - stats.vectors} images have no vector of {stats.model} and search does not find them. "
            "Run: fc7 index reembed"
        )


def _build_here(
    settings: Settings, runner: Runner, source: str, options: BuildOptions, progress: Callable[[BuildReport], None]
) -> tuple[BuildReport, IndexStats]:
    artifact = runner.artifact
    with open_index_of(
        settings, IndexOptions(artifact.fingerprint, artifact.embedder, switch=options.rebuild)
    ) as index:
        report = build_index(
            Path(source),
            index,
            runner,
            batch_size=options.batch_size,
            workers=settings.threads_to_decode,
            progress=progress,
            key_prefix=options.key_prefix,
            limits=decode_limits(settings),
            keep_pictures=settings.keep_pictures,
            metadata=options.metadata,
        )
        return report, index.stats()


@app.command("reembed")
def reembed_command(home: Home = None, model: ModelOption = None, batch_size: BatchSize = 16) -> None:
    """Compute another model's vectors from the stored pictures, and switch the index to them when all are done."""
    settings = load_settings(home=home)
    runner = _runner(settings, model)
    address = milvus_address(settings)
    reembed_index = partial(reembed, settings.home) if address is None else partial(reembed_on_milvus, address)
    with console.ProgressBar("embedding", "images") as bar:
        report = reembed_index(
            runner,
            batch_size=batch_size,
            workers=settings.threads_to_decode,
            progress=lambda so_far: bar.update(so_far.embedded + len(so_far.skipped), so_far.total),
        )
    console.say_first([f"skipped {key}: {reason}" for key, reason in report.skipped])
    console.say(
        f"{report.embedded} of {report.total} images embedded with {runner.artifact.embedder}, "
        f"{len(report.skipped)} skipped."
    )
    if report.interrupted:
        console.exit_interrupted(_INTERRUPTED)
    console.say(f"The index now uses the vectors of {runner.artifact.embedder}.")
    console.next_step("fc7 search IMAGE, or fc7 serve")


@app.command()
def stats(*, home: Home = None, as_json: AsJson = False) -> None:
    """Print how many images the index has, its model and its size; also while a server is running."""
    settings = load_settings(home=home)
    found = read_stats_of(settings)
    if as_json:
        console.print_json(asdict(found))
        return
    table = Table(show_header=False, box=None)
    table.add_row("images", f"{found.images:,}")
    table.add_row("with a vector", f"{found.vectors:,}")
    if found.outdated:
        table.add_row("outdated", f"{found.outdated:,}")
    table.add_row("model", found.model or "none yet")
    table.add_row("fingerprint", found.fingerprint[:16])
    table.add_row("mode", found.mode)
    if settings.index_uri is None:
        table.add_row("on disk", f"{found.bytes_on_disk / 1e6:,.1f} MB")
    else:
        table.add_row("on Milvus", settings.index_uri)
    console.show(table)
    if found.outdated:
        console.say(outdated_note(found.outdated))
    console.next_step("fc7 search IMAGE" if found.vectors else "fc7 index build DIR")


def _runner(settings: Settings, model: str | None) -> Runner:
    return Runner(find_version(ModelStore(settings.home), model), runner_options(settings))
