"""`fc7 models compare|quantize|add-explanations|save|load|remove|verify`: compare, extend, move and delete versions.

Out of scope: changing a published version; choosing the precision that is served (FC7_PRECISION); notifying a running
server, which keeps a version that it has in memory.
"""

from __future__ import annotations

import logging
import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from index.errors import IndexUnavailableError, IndexUnreachableError
from model_store import compare as comparison
from model_store.compare import Comparison
from model_store.errors import ModelInUseError
from model_store.manifest import graph_files
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.transfer.archive import export_version, import_version
from service.cli import console
from service.cli.data.unpack import data_folder
from service.cli.options import AsJson, Home, Model, model_argument
from service.factory import read_stats_of, runner_options
from service.settings import load_settings


class AddedPrecision(StrEnum):
    """A precision that can be added to a version."""

    INT8 = "int8"
    FP16 = "fp16"


def compare(
    first: Annotated[str, model_argument("A", "First version, such as solar:1.")],
    second: Annotated[str, model_argument("B", "Second version, such as solar:2.")],
    *,
    data: Annotated[
        Path, typer.Option(metavar="DIR", help="Images at any depth. Errors are counted for those in DIR/<class>/*.")
    ],
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Images per run.")] = 16,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Run two versions on a folder of images and compare their predictions, errors and speed."""
    settings = load_settings(home=home)
    store = ModelStore(settings.home)
    options = runner_options(settings)
    one, other = (Runner(store.resolve(reference), options) for reference in (first, second))
    with console.ProgressBar("comparing", "images") as bar:
        result = comparison.compare(one, other, data, batch=batch, progress=bar.update)
    console.say_skipped(result.skipped)
    document = _document(result)
    if as_json:
        console.print_json(document)
    else:
        _print(document, batch)
        console.next_step("fc7 models activate MODEL")


def quantize(
    model: Model,
    *,
    precision: Annotated[list[AddedPrecision], typer.Option(help="Precision to add. Can be repeated.")],
    data: Annotated[
        Path | None,
        typer.Option(
            metavar="DATA",
            help="Data set with the splits train and --split, or without a split.",
            show_default="the data that the version was trained on",
        ),
    ] = None,
    split: Annotated[str, typer.Option(help="Split on which it is compared with fp32.")] = "val",
    calibrate: Annotated[
        int, typer.Option(min=1, max=10_000, help="Number of training images that calibrate int8's value ranges.")
    ] = 64,
    home: Home = None,
) -> None:
    """Publish a new version with int8 or fp16 graphs added, and compare them with fp32 on images."""
    from model_store.training.export.quantize import add_precisions  # noqa: PLC0415 - torch
    from model_store.training.parents import version_data  # noqa: PLC0415

    logging.disable(logging.WARNING)  # ONNX Runtime recommends a preprocessing that this graph does not need
    settings = load_settings(home=home)
    store = ModelStore(settings.home)
    source = store.resolve(model)
    given = None if data is None else data_folder(data, settings.home)
    images = version_data(settings.home, source, given)
    with console.ProgressBar() as bar:
        artifact = add_precisions(source, store, precision, images, split=split, calibrate=calibrate, progress=bar.step)
    table = Table("", "weights", "same top-1", "fp32's top-1 in top k", "fc7 cosine", "top-1 error", box=None)
    table.add_row("fp32", _size(artifact.manifest.files[graph_files("fp32")[1]].size))
    for name in precision:
        found = artifact.manifest.precisions[name].metrics
        error = "-" if found["top1_error"] is None else f"{found['top1_error']:.1%} ({found['top1_error_change']:+.1%})"
        table.add_row(
            name,
            _size(artifact.manifest.files[graph_files(name)[1]].size),
            f"{found['top1_agreement']:.2%}",
            f"{found['top5_agreement']:.2%} of {found['k']}",
            f"{found['fc7_cosine']:.5f}",
            error,
        )
    console.show(table)
    console.show(f"[green]Published {artifact.id}[/] in {escape(str(artifact.path))}.")
    console.next_step(f"fc7 models activate {artifact.id}, then FC7_PRECISION={precision[0]} fc7 serve")


def add_explanations(model: Model, *, home: Home = None) -> None:
    """Publish a new version with the graph for explanations added, for a version of an earlier release."""
    from model_store.training.export.explain_graph import add_explanations  # noqa: PLC0415 - onnx

    store = ModelStore(load_settings(home=home).home)
    artifact = add_explanations(store.resolve(model), store)
    console.show(f"[green]Published {artifact.id}[/] in {escape(str(artifact.path))}.")
    console.next_step(f"fc7 models activate {artifact.id}, then fc7 explain IMAGE --out heat.png")


def save(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE.fc7.tar", help="Archive to write.")],
    *,
    home: Home = None,
) -> None:
    """Save a version to one archive file with checksums."""
    artifact = ModelStore(load_settings(home=home).home).resolve(model, verify=False)
    size = export_version(artifact, file)
    console.show(f"Saved {artifact.id} to {file}, {size / 1e6:.1f} MB.", markup=False)
    console.next_step(f"on another machine, fc7 models load {file.name}")


def load(
    file: Annotated[Path, typer.Argument(metavar="FILE.fc7.tar", help="Archive written by fc7 models save.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default="the name in the archive")] = None,
    home: Home = None,
) -> None:
    """Verify an archive of fc7 models save and publish it as the next version of its name."""
    artifact = import_version(ModelStore(load_settings(home=home).home), file, name=name)
    console.show(f"[green]Published {artifact.id}[/]; {len(artifact.manifest.files)} files match the manifest.")
    console.next_step(f"fc7 models activate {artifact.id}")


def remove(model: Annotated[str, model_argument("NAME:VERSION", "Version to delete.")], *, home: Home = None) -> None:
    """Delete a version; the active one and the one that made the index's vectors cannot be deleted."""
    settings = load_settings(home=home)
    store = ModelStore(settings.home)
    artifact = store.resolve(model, verify=False)
    if ":" not in model:
        raise typer.BadParameter(f"{model} has no version number: give one such as {artifact.id}.")
    try:
        needed = read_stats_of(settings).fingerprint
    except IndexUnreachableError:
        raise  # whether the index needs this version is unknown
    except IndexUnavailableError:
        needed = ""
    computed_by = {each.id for each in store.list() if needed in (variant.fingerprint for variant in each.variants())}
    if computed_by == {artifact.id}:
        raise ModelInUseError(artifact.id, "the model of the index's vectors")
    store.remove(artifact.name, artifact.version)
    console.show(f"Removed {artifact.id}. Its number is not used again.", markup=False)
    console.next_step("fc7 models list")


def verify(
    model: Annotated[str | None, model_argument(show_default="all versions")] = None, *, home: Home = None
) -> None:
    """Compare every file of a version with its checksum; exit with 1 if one differs."""
    store = ModelStore(load_settings(home=home).home)
    artifacts, broken = ([store.resolve(model, verify=False)], []) if model is not None else store.scan()
    bad = len(broken)
    for error in broken:
        console.show(f"[red]broken:[/] {escape(str(error))}")
    for artifact in artifacts:
        started = time.perf_counter()
        differing = artifact.differing()
        if differing:
            bad += 1
            console.show(
                f"[red]{artifact.id}:[/] {escape(', '.join(differing))} differ from the manifest or are missing."
            )
        else:
            count, seconds = len(artifact.manifest.files), time.perf_counter() - started
            console.show(f"[green]{artifact.id}:[/] {count} files match the manifest ({seconds:.1f} s).")
    if bad:
        console.next_step("fc7 models load FILE.fc7.tar publishes an intact copy; fc7 models remove deletes this one")
        raise typer.Exit(1)
    console.next_step("fc7 models list")


def _size(count: int) -> str:
    return f"{count / 1e6:.0f} MB"


def _document(result: Comparison) -> dict[str, Any]:
    labelled, cosines = result.labelled, result.cosines
    return {
        "models": [
            {
                "model": side.model,
                "top1_error": side.wrong_top1 / labelled if labelled else None,
                "top5_error": side.wrong_top5 / labelled if labelled else None,
                "images_per_second": result.images / side.seconds,
            }
            for side in result.sides
        ],
        "images": result.images,
        "labelled": labelled,
        "skipped": [item.to_dict() for item in result.skipped],
        "same_top1": result.same_top1 / result.images,
        "same_top5": result.same_top5 / result.images,
        "fc7_cosine": {"mean": float(np.mean(cosines)), "least": min(cosines)} if cosines else None,
    }


def _print(found: dict[str, Any], batch: int) -> None:
    """Print what `_document` returns."""
    sides, cosine = found["models"], found["fc7_cosine"]
    table = Table("", *(escape(side["model"]) for side in sides), box=None, header_style="dim")
    if found["labelled"]:
        for name, key in (("top-1 error", "top1_error"), ("top-5 error", "top5_error")):
            table.add_row(name, *(f"{side[key]:.1%}" for side in sides))
    table.add_row("images per second", *(f"{side['images_per_second']:.1f}" for side in sides))
    console.show(table)
    labelled = f"{found['labelled']} of them labelled" if found["labelled"] else "none in a folder named after a class"
    console.show(f"{found['images']} images, {labelled}, {len(found['skipped'])} skipped, in batches of {batch}.")
    console.show(
        f"Same top-1 class for {found['same_top1']:.1%} of the images, same top-5 classes for {found['same_top5']:.1%}."
    )
    if cosine:
        console.show(f"Cosine of fc7: mean {cosine['mean']:.5f}, minimum {cosine['least']:.5f}.")
    else:
        console.show("fc7 is not compared because the architectures differ.")
