"""`fc7 data ...`: data sets to train on.

Does not: import torch, or download anything.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from model_store.cores import usable_cores
from service.cli.extras import training_extra

if TYPE_CHECKING:
    from model_store.training.data.sources import Source

_NOTES: Final = 5  # listed one by one
app = typer.Typer(help="Data sets to train on.", no_args_is_help=True)


@app.callback()
def _group() -> None:
    """Data sets to train on."""


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to put train/ and val/; made if missing.")],
) -> None:
    """Arrange the photographs of the package elpv-dataset: solar cells, eight classes, a fixed fifth held out."""
    from model_store.training.data.demo import SOURCE_FILE, copy_demo  # noqa: PLC0415

    demo_data = copy_demo(folder)
    console = Console(soft_wrap=True, highlight=False)
    table = Table("class", "train", "val")
    for label, images in demo_data.train.items():
        table.add_row(label, str(images), str(demo_data.val[label]))
    table.add_section()
    table.add_row("all", str(sum(demo_data.train.values())), str(sum(demo_data.val.values())))
    console.print(table)
    console.print(f"{demo_data.copied} photographs copied to {demo_data.folder}, the others were there.", markup=False)
    console.print(
        "Source: ELPV dataset, PyPI elpv-dataset, https://github.com/zae-bayern/elpv-dataset\n"
        "Licence: CC-BY-NC-SA 4.0, not for commercial use. "
        f"{demo_data.folder / SOURCE_FILE} has the papers to cite.",
        markup=False,
    )
    console.print(f"Next: fc7 train --data {demo_data.folder} --recipe small --name solar", markup=False)


@app.command()
def ilsvrc(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="ILSVRC's tars and kit, or what they unpack to.")],
) -> None:
    """Check ILSVRC-2010 or 2012 as distributed: kit, ground truth, and images of every class. Nothing is written."""
    with training_extra():
        from model_store.training.data.ilsvrc import ilsvrc_source  # noqa: PLC0415
    source = ilsvrc_source(folder)
    _print_source(source)
    Console(soft_wrap=True, highlight=False).print(f"Next: fc7 data prepare {folder} SHARDS", markup=False)


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="ILSVRC as distributed, or class folders.")],
    out: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder for the shards; made if missing.")],
    *,
    quality: Annotated[int, typer.Option(min=1, max=100, help="Of the JPEGs.")] = 95,
    lossless: Annotated[bool, typer.Option("--lossless", help="PNGs instead: exact, much larger.")] = False,
    shard_images: Annotated[int, typer.Option(min=1, help="Images in a shard.")] = 1_000,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Threads [default: one a core]", show_default=False)
    ] = None,
) -> None:
    """Prepare images once, as 256x256 in tars (WebDataset); the same command goes on after an interruption."""
    with training_extra():
        from model_store.training.data.class_folders import find_class_folders  # noqa: PLC0415
        from model_store.training.data.ilsvrc import ilsvrc_source, is_ilsvrc  # noqa: PLC0415
        from model_store.training.data.prepare import Encoding, prepare_shards  # noqa: PLC0415
        from model_store.training.data.shards import read_folder  # noqa: PLC0415
        from model_store.training.signals import stop_on_signals  # noqa: PLC0415
    found = ilsvrc_source(source) if is_ilsvrc(source) else find_class_folders(source)
    _print_source(found)
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with _bars(console) as bars, stop_on_signals(lambda: console.print("stopping after this shard")) as stop:
        task = bars.add_task("preparing", total=None)
        whole = prepare_shards(
            found,
            out,
            encoding=Encoding(None if lossless else quality),
            shard_images=shard_images,
            workers=workers or usable_cores(),
            progress=lambda done, total: bars.update(task, completed=done, total=total),
            stop=stop.is_set,
        )
    if not whole:
        console.print("stopped; the same command goes on after the last whole shard", markup=False)
        raise typer.Exit(130)
    folder = read_folder(out)
    shards = [shard for split in folder.splits.values() for shard in split]
    console.print(
        f"{sum(shard.images for shard in shards):,} images in {len(shards):,} shards, "
        f"{sum(shard.size for shard in shards) / 1e6:,.1f} MB, {folder.encoding}",
        markup=False,
    )
    skipped = len(json.loads((out / "skipped.json").read_text(encoding="utf-8")))
    if skipped:
        console.print(f"{skipped:,} files were skipped: {out / 'skipped.json'} lists them", markup=False)
    if folder.duplicates:
        pairs = len(folder.duplicates)
        console.print(f"{pairs:,} images of train are, byte for byte, in val: the error will be too good", markup=False)
    console.print(f"Next: fc7 data verify {out}, then fc7 train --data {out} --recipe paper --name NAME", markup=False)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", help="A folder that fc7 data prepare made.")],
) -> None:
    """Compare every byte of prepared shards with their hashes."""
    with training_extra():
        from model_store.training.data.shards import verify_shards  # noqa: PLC0415
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with _bars(console) as bars:
        task = bars.add_task("verifying", total=None)
        found = verify_shards(folder, lambda done, total: bars.update(task, completed=done, total=total))
    images = ", ".join(f"{sum(s.images for s in shards):,} of {split}" for split, shards in found.splits.items())
    console.print(f"every byte is as it was written: {images}; data hash {found.hash[:12]}", markup=False)


def _bars(console: Console) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console)


def _print_source(source: Source) -> None:
    console = Console(soft_wrap=True, highlight=False)
    counts = ", ".join(f"{len(items):,} of {split}" for split, items in source.splits.items())
    console.print(f"{source.kind} in {source.root}: {len(source.classes):,} classes; images: {counts}", markup=False)
    for note in source.notes[:_NOTES]:
        console.print(f"note: {note}", markup=False)
    if len(source.notes) > _NOTES:
        console.print(f"note: and {len(source.notes) - _NOTES} more classes like these", markup=False)
