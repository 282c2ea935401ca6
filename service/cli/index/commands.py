"""`fc7 index`: put a folder of images into the index, look at it, and take it to another model.

`build` works on this machine, or with `--ray` on a cluster (`service.cli.index.ray`).
Does not: need the server; while one has the index open, only `stats` works (all do where it is on Milvus).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from index.bulk.folder import build_index, relative_path
from index.bulk.reembed import reembed
from index.bulk.report import BuildReport, ReembedReport
from index.bulk.sources import is_uri
from index.errors import FolderError, SourceError
from index.milvus.reembed import reembed_on_milvus
from index.records import IndexOptions, IndexStats
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from service.cli.index.ray import BuildOptions, build_on_ray, print_json
from service.factory import milvus_address, open_index_of, read_stats_of, runner_options
from service.settings import Settings, load_settings

app = typer.Typer(name="index", help="Fill the image index and look at it.", no_args_is_help=True)
INTERRUPTED = 130
_MOST_LISTED = 20

Home = Annotated[Path | None, typer.Option(help="Folder of all state [FC7_HOME].", show_default=False)]
Model = Annotated[str | None, typer.Option(help="A version such as solar:1; the active one by default.")]
BatchSize = Annotated[int, typer.Option(min=1, max=1024, help="Images in one run and one commit.")]


@app.command()
def build(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Folder of images, at any depth; with --ray also a URI (s3://...).")
    ],
    *,
    home: Home = None,
    model: Model = None,
    batch_size: BatchSize = 32,
    rebuild: Annotated[
        bool, typer.Option("--rebuild", help="Take the index to this model; images not in SOURCE leave the search.")
    ] = False,
    key_prefix: Annotated[str, typer.Option(help="Put before each key, which is the path within SOURCE.")] = "",
    ray: Annotated[
        str | None,
        typer.Option(metavar="ADDRESS", help="Embed on a Ray cluster: local (started here), auto, or HOST:PORT."),
    ] = None,
    actors: Annotated[
        int | None, typer.Option(min=1, help="With --ray: how many embed; as many as there is room for by default.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON on standard output.")] = False,
) -> None:
    """Add every image in SOURCE. Run it again to go on after an interruption, or to add what is new."""
    console = Console(stderr=True)
    settings = load_settings(home=home)
    if actors is not None and ray is None:
        raise typer.BadParameter("it is about a Ray cluster: give --ray too", param_hint="--actors")
    if ray is None and is_uri(source):
        raise SourceError(source, "without --ray only folders are; `--ray local` reads this on one machine")
    began = time.perf_counter()
    options = BuildOptions(model, batch_size, key_prefix, rebuild)
    with _progress(console) as bar:
        show = partial(_show, bar, bar.add_task("indexing", total=None, rate=""))
        if ray is None:
            report, stats = _build_here(settings, Path(source), options, show)
        else:
            report, stats = build_on_ray(settings, source, options, show, address=ray, actors=actors)
    if as_json:
        print_json(report, time.perf_counter() - began)
    _list_skipped(console, [(str(path), reason) for path, reason in report.skipped])
    console.print(
        f"{report.seen} of {report.total} images seen: {report.added} added, {report.replaced} replaced, "
        f"{report.unchanged} unchanged, {len(report.skipped)} skipped. "
        f"The index has {stats.vectors} images of {stats.model}.",
        highlight=False,
        soft_wrap=True,
    )
    if stats.images > stats.vectors:
        console.print(
            f"{stats.images - stats.vectors} images have no vector of {stats.model}, and search does not find them: "
            "fc7 index reembed",
            highlight=False,
            soft_wrap=True,
        )
    _stop_if_interrupted(console, interrupted=report.interrupted)
    if len(report.skipped) == report.total:
        raise FolderError(source, f"has no image that can be read: all {report.total} were skipped.")
    console.print("Next: fc7 search PHOTO, or fc7 serve.", highlight=False)


def _build_here(
    settings: Settings, folder: Path, options: BuildOptions, progress: Callable[[BuildReport], None]
) -> tuple[BuildReport, IndexStats]:
    runner = _runner(settings, options.model)
    artifact = runner.artifact
    with open_index_of(
        settings, IndexOptions(artifact.fingerprint, artifact.embedder, switch=options.rebuild)
    ) as index:
        report = build_index(
            folder,
            index,
            runner,
            batch_size=options.batch_size,
            workers=settings.decode_threads or 2,
            progress=progress,
            key=lambda path, below: options.key_prefix + relative_path(path, below),
            max_pixels=settings.max_pixels,
            keep_pictures=settings.keep_pictures,
        )
        return report, index.stats()


def _show(bar: Progress, task: TaskID, so_far: BuildReport) -> None:
    bar.update(task, total=so_far.total or None, completed=so_far.seen, rate=_rate(bar, so_far.seen))


@app.command("reembed")
def reembed_command(home: Home = None, model: Model = None, batch_size: BatchSize = 32) -> None:
    """Make the vectors of another model from the stored pictures, and switch to it when all are made."""
    console = Console(stderr=True)
    settings = load_settings(home=home)
    runner = _runner(settings, model)
    with _progress(console) as bar:
        task = bar.add_task("embedding", total=None, rate="")

        def show(so_far: ReembedReport) -> None:
            done = so_far.embedded + len(so_far.skipped)
            bar.update(task, total=so_far.total, completed=done, rate=_rate(bar, done))

        report = _reembed(settings, runner, batch_size, show)
    _list_skipped(console, report.skipped)
    console.print(
        f"{report.embedded} of {report.total} images embedded with {runner.artifact.embedder}, "
        f"{len(report.skipped)} skipped.",
        highlight=False,
        soft_wrap=True,
    )
    _stop_if_interrupted(console, interrupted=report.interrupted)
    console.print(f"The index is one of {runner.artifact.embedder} now.", highlight=False)


@app.command()
def stats(home: Home = None) -> None:
    """Print how many images the index has, and how large it is; a running server does not mind."""
    settings = load_settings(home=home)
    found = read_stats_of(settings)
    table = Table(show_header=False, box=None)
    table.add_row("images", f"{found.images:,}")
    table.add_row("with a vector", f"{found.vectors:,}")
    table.add_row("model", found.model or "none yet")
    table.add_row("fingerprint", found.fingerprint[:16])
    table.add_row("mode", found.mode)
    if settings.index_uri is None:
        table.add_row("on disk", f"{found.bytes_on_disk / 1e6:,.1f} MB")
    else:
        table.add_row("on Milvus", settings.index_uri)
    Console().print(table, highlight=False)


def _reembed(
    settings: Settings, runner: Runner, batch_size: int, progress: Callable[[ReembedReport], None]
) -> ReembedReport:
    workers = settings.decode_threads or 2
    address = milvus_address(settings)
    if address is None:
        return reembed(settings.home, runner, batch_size=batch_size, workers=workers, progress=progress)
    return reembed_on_milvus(address, runner, batch_size=batch_size, workers=workers, progress=progress)


def _runner(settings: Settings, model: str | None) -> Runner:
    store = ModelStore(settings.home)
    artifact = store.active_artifact() if model is None else store.resolve(model)
    return Runner(artifact, runner_options(settings, batches=True))


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
    )


def _rate(bar: Progress, done: int) -> str:
    elapsed = bar.tasks[0].elapsed
    return f"{done / elapsed:.1f} images/s" if elapsed else ""


def _list_skipped(console: Console, skipped: list[tuple[str, str]]) -> None:
    for name, reason in skipped[:_MOST_LISTED]:
        console.print(f"skipped {name}: {reason}", markup=False, highlight=False, soft_wrap=True)
    if len(skipped) > _MOST_LISTED:
        console.print(f"... and {len(skipped) - _MOST_LISTED} more")


def _stop_if_interrupted(console: Console, *, interrupted: bool) -> None:
    if interrupted:
        console.print("Interrupted: what was counted is in the index; the same command goes on from there.")
        raise typer.Exit(INTERRUPTED)
