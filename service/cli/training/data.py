"""`fc7 data`: arrange, check and prepare data sets for training.

Out of scope: downloading.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.table import Table

from model_store.cores import usable_cores
from service.cli import console
from service.cli.options import Workers

if TYPE_CHECKING:
    from model_store.training.data.image_file import Source

_NOTES: Final = 5  # printed one by one
app = typer.Typer(name="data", help="Arrange, check and prepare data sets for training.", no_args_is_help=True)


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Folder for train/ and val/. Created if missing.")],
) -> None:
    """Arrange the solar cell images of the package elpv-dataset in eight classes, with a fixed fifth held out."""
    from model_store.training.data.demo import SOURCE_FILE, copy_demo  # noqa: PLC0415

    demo_data = copy_demo(folder)
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
    console.next_step(f"fc7 train --data {demo_data.folder} --recipe small --set flip_vertical=true --name solar")


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

    _print_source(ilsvrc_source(folder))
    console.next_step(f"fc7 data prepare {folder} SHARDS")


@app.command()
def prepare(
    source: Annotated[Path, typer.Argument(metavar="DIR", help="ILSVRC as distributed, or class folders.")],
    out: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder for the shards. Created if missing.")],
    *,
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = 95,
    lossless: Annotated[bool, typer.Option("--lossless", help="Write PNG files: exact, but much larger.")] = False,
    shard_images: Annotated[int, typer.Option(min=1, help="Images per shard.")] = 1_000,
    workers: Workers = None,
) -> None:
    """Resize all images to 256x256 once and store them in tar shards (WebDataset); it can be resumed."""
    from model_store.training.data.class_folders import find_class_folders  # noqa: PLC0415
    from model_store.training.data.ilsvrc import ilsvrc_source, is_ilsvrc  # noqa: PLC0415
    from model_store.training.data.image_file import read_skipped  # noqa: PLC0415
    from model_store.training.data.prepare import Encoding, prepare_shards  # noqa: PLC0415
    from model_store.training.data.shards import read_folder  # noqa: PLC0415
    from model_store.training.signals import stop_on_signals  # noqa: PLC0415

    found = ilsvrc_source(source) if is_ilsvrc(source) else find_class_folders(source)
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
    console.next_step(f"fc7 data verify {out}, then fc7 train --data {out} --recipe paper --name NAME")


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="SHARDS", help="Folder written by fc7 data prepare.")],
) -> None:
    """Compare prepared shards with their checksums."""
    from model_store.training.data.shards import verify_shards  # noqa: PLC0415

    with console.ProgressBar("verifying", "shards") as bar:
        found = verify_shards(folder, bar.update)
    images = ", ".join(f"{sum(s.images for s in shards):,} of {split}" for split, shards in found.splits.items())
    console.say(f"All checksums match: {images}. Data hash: {found.hash[:12]}.")
    console.next_step(f"fc7 train --data {folder} --recipe paper --name NAME")


def _print_source(source: Source) -> None:
    counts = ", ".join(f"{len(items):,} of {split}" for split, items in source.splits.items())
    console.show(f"{source.kind} in {source.root}: {len(source.classes):,} classes; images: {counts}", markup=False)
    for note in source.notes[:_NOTES]:
        console.show(f"note: {note}", markup=False)
    if len(source.notes) > _NOTES:
        console.show(f"note: {len(source.notes) - _NOTES} more like these", markup=False)
