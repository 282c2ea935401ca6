"""`fc7 data demo|ilsvrc|split|prepare|verify`: arrange, split and prepare data sets for training.

Out of scope: downloading; `fc7 data check` (check.py).
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.markup import escape
from rich.table import Table

from model_store.cores import usable_cores
from model_store.errors import DatasetError
from service.cli import console
from service.cli.data.unpack import data_folder
from service.cli.options import Home, ValShare, Workers
from service.factory import decode_limits
from service.settings import load_settings

if TYPE_CHECKING:
    from model_store.training.data.image_file import Source

DEMO_NAME: Final = "solar"
DEMO_RECIPE: Final = "small"
DEMO_SETTINGS: Final = ("flip_vertical=true", "epochs=9")  # solar cells have no upright orientation
_NOTES: Final = 5  # printed one by one
app = typer.Typer(name="data", help="Check, split and prepare data sets for training.", no_args_is_help=True)
DataSource = Annotated[
    Path, typer.Argument(metavar="SOURCE", help="Class folders, a table (CSV, JSON Lines, Parquet) or an archive.")
]


def demo_training(folder: Path) -> str:
    """Return the command that trains a net on the demo data in `folder`."""
    changes = " ".join(f"--set {setting}" for setting in DEMO_SETTINGS)
    return f"fc7 train {shlex.quote(str(folder))} --recipe {DEMO_RECIPE} {changes} --name {DEMO_NAME}"


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for train/ and val/. Created if missing.")],
) -> None:
    """Arrange the solar cell images of the package elpv-dataset in eight classes, with a fixed fifth held out."""
    from model_store.training.data.demo import SOURCE_FILE, copy_demo  # noqa: PLC0415

    demo_data = copy_demo(folder.expanduser())
    table = Table("class", "train", "val")
    for label, images in demo_data.train.items():
        table.add_row(label, str(images), str(demo_data.val[label]))
    table.add_section()
    table.add_row("all", str(sum(demo_data.train.values())), str(sum(demo_data.val.values())))
    console.show(table)
    console.say(f"{demo_data.copied} images copied to {demo_data.folder}; the others were already there.")
    console.say(
        "Source: ELPV dataset, PyPI elpv-dataset, https://github.com/zae-bayern/elpv-dataset\n"
        "License: CC-BY-NC-SA 4.0, not for commercial use. "
        f"{demo_data.folder / SOURCE_FILE} lists the papers to cite."
    )
    console.next_step(demo_training(demo_data.folder))


@app.command()
def ilsvrc(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="DIR", help="Folder with ILSVRC's development kit and images, as tar files or unpacked."
        ),
    ],
) -> None:
    """Check that ILSVRC-2010 or ILSVRC-2012 is complete, without writing anything."""
    from model_store.training.data.ilsvrc import ilsvrc_source  # noqa: PLC0415

    _print_source(ilsvrc_source(folder.expanduser()))
    console.next_step(f"fc7 data prepare {shlex.quote(str(folder))} SHARDS")


@app.command()
def split(
    source: DataSource,
    table: Annotated[Path, typer.Argument(metavar="TABLE", help="New file ending in .csv, .jsonl or .parquet.")],
    *,
    val_share: ValShare = 0.2,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the choice.")] = 0,
    nested: Annotated[
        bool, typer.Option("--nested", help="Make each folder with images a class, not only the top folders.")
    ] = False,
    home: Home = None,
) -> None:
    """Choose the images for validation and write a table with path, label and split; no image is copied."""
    from concurrent.futures import ThreadPoolExecutor  # noqa: PLC0415

    from model_store.decoder.decoder import Decoder  # noqa: PLC0415
    from model_store.training.data.reader import read_fingerprints, require_every_class  # noqa: PLC0415
    from model_store.training.data.sources import class_notes, find_source, require_trainable  # noqa: PLC0415
    from model_store.training.data.split import SplitRule, labeled_paths, split_source, split_to_make  # noqa: PLC0415
    from model_store.training.data.table import check_new_table, write_table  # noqa: PLC0415

    table = table.expanduser()
    if table.exists():
        raise DatasetError(f"{table} already exists. Choose another name, or remove it.")
    check_new_table(table)
    settings = load_settings(home=home)
    rule = SplitRule(val_share, seed)
    found = find_source(data_folder(source, settings.home), nested=nested)
    require_trainable(found)
    divided = split_to_make(found)
    skipped = list(found.ignored)
    if divided is not None:
        with (
            console.ProgressBar("reading", "images") as bar,
            Decoder(decode_limits(settings)) as decoder,
            ThreadPoolExecutor(usable_cores()) as workers,
        ):
            fingerprints, broken = read_fingerprints(found.splits[divided], workers, decoder, bar.update)
        skipped += broken
        require_every_class(found, divided, list(fingerprints))
        found = split_source(found, fingerprints, rule)
    else:
        note = f"{source} is split already. Its split was kept, and --val-share and --seed have no effect."
        found = replace(found, notes=(*found.notes, note))
    write_table(table, labeled_paths(found), relative_to=table.absolute().parent)
    console.say_skipped(skipped)
    counts = {name: found.counts(name) for name in found.splits}
    shown = Table("class", *counts)
    for label in found.classes:
        shown.add_row(escape(label), *(f"{count[label]:,}" for count in counts.values()))
    shown.add_section()
    shown.add_row("all", *(f"{count.total():,}" for count in counts.values()))
    console.show(shown)
    for note in [*found.notes, *class_notes(found)]:
        console.say(note)
    quoted = shlex.quote(str(table))
    console.next_step(f"fc7 data check {quoted}, then fc7 train {quoted} --name NAME")


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(metavar="SOURCE", help="ILSVRC as distributed, class folders, or a table.")],
    out: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder for the shards. Created if missing.")],
    *,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = 95,
    lossless: Annotated[bool, typer.Option("--lossless", help="Write PNG files: exact, but much larger.")] = False,
    shard_images: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 1_000,
    workers: Workers = None,
    home: Home = None,
) -> None:
    """Resize all images to 256x256 once and store them in tar shards (WebDataset); it can be resumed."""
    from model_store.training.data.image_file import read_skipped  # noqa: PLC0415
    from model_store.training.data.prepare import Encoding, prepare_shards  # noqa: PLC0415
    from model_store.training.data.shards import read_folder  # noqa: PLC0415
    from model_store.training.data.sources import find_source, require_trainable  # noqa: PLC0415
    from model_store.training.data.split import split_to_make  # noqa: PLC0415
    from model_store.training.signals import stop_on_signals  # noqa: PLC0415

    out = out.expanduser()
    settings = load_settings(home=home)
    found = find_source(data_folder(source, settings.home))
    require_trainable(found)
    if split_to_make(found) is not None:
        raise DatasetError(
            f"{source} has no images for validation. Choose them first: fc7 data split {shlex.quote(str(source))} "
            "split.csv, and then: fc7 data prepare split.csv SHARDS"
        )
    _print_source(found)
    with (
        console.ProgressBar("preparing", "images") as bar,
        stop_on_signals(lambda: console.say("Stopping after this shard.")) as stop,
    ):
        finished = prepare_shards(
            found,
            out,
            encoding=Encoding(None if lossless else quality),
            shard_images=shard_images,
            workers=workers or usable_cores(),
            limits=decode_limits(settings),
            progress=bar.update,
            stop=stop.is_set,
        )
    if not finished:
        console.exit_interrupted("Stopped. Run the same command again to resume after the last complete shard.")
    folder = read_folder(out)
    shards = [shard for split in folder.splits.values() for shard in split]
    console.say(
        f"{sum(shard.images for shard in shards):,} images in {len(shards):,} shards, "
        f"{sum(shard.size for shard in shards) / 1e6:,.1f} MB, {folder.encoding}"
    )
    if skipped := read_skipped(out):
        console.say(f"{len(skipped):,} files are not used. {out / 'skipped.json'} lists all of them:")
        console.say_skipped(skipped)
    if folder.duplicates:
        console.warn(
            f"{len(folder.duplicates):,} training images are also in val, byte for byte. "
            "The validation error will be too low."
        )
    quoted = shlex.quote(str(out))
    console.next_step(f"fc7 data verify {quoted}, then fc7 train {quoted} --recipe paper --name NAME")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder written by fc7 data prepare.")],
) -> None:
    """Compare prepared shards with their checksums."""
    from model_store.training.data.shards import verify_shards  # noqa: PLC0415

    with console.ProgressBar("verifying", "shards") as bar:
        found = verify_shards(folder.expanduser(), bar.update)
    images = ", ".join(f"{sum(s.images for s in shards):,} of {split}" for split, shards in found.splits.items())
    console.say(f"All checksums match: {images}. Data hash: {found.hash[:12]}.")
    console.next_step(f"fc7 train {shlex.quote(str(folder))} --recipe paper --name NAME")


def _print_source(source: Source) -> None:
    counts = ", ".join(f"{len(items):,} of {split}" for split, items in source.splits.items())
    console.show(f"{source.kind} in {source.root}: {len(source.classes):,} classes; images: {counts}", markup=False)
    for note in source.notes[:_NOTES]:
        console.show(f"note: {note}", markup=False)
    if len(source.notes) > _NOTES:
        console.show(f"note: {len(source.notes) - _NOTES} more like these", markup=False)
