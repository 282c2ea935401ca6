"""`fc7 models compare|save|load|remove|verify`: compare two versions, and move versions between machines as files.

Out of scope: notifying a running server; a version that it has in memory stays there.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from rich.markup import escape
from rich.table import Table

from index.errors import IndexUnavailableError, IndexUnreachableError
from model_store import compare as comparison
from model_store.archive import export_version, import_version
from model_store.compare import Comparison, Side
from model_store.errors import ModelInUseError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from service.cli import console
from service.cli.completion import complete_model
from service.cli.options import AsJson, Home, Model
from service.factory import read_stats_of
from service.settings import load_settings


def compare(
    first: Annotated[
        str, typer.Argument(metavar="A", help="First version, such as solar:1.", autocompletion=complete_model)
    ],
    second: Annotated[
        str, typer.Argument(metavar="B", help="Second version, such as solar:2.", autocompletion=complete_model)
    ],
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
    options = RunnerOptions(device=settings.device, intra_op_threads=settings.threads, batches=batch > 1)
    one, other = (Runner(store.resolve(reference), options) for reference in (first, second))
    with console.ProgressBar("comparing", "images") as bar:
        result = comparison.compare(one, other, data, batch=batch, progress=bar.update)
    console.say_skipped(result.skipped)
    if as_json:
        console.print_json(_as_json(result))
    else:
        _print(result)
        console.next_step("fc7 models activate MODEL")


def save(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE.fc7.tar", help="Archive to write.")],
    *,
    home: Home = None,
) -> None:
    """Save a version to one archive file with checksums."""
    artifact = ModelStore(load_settings(home=home).home).resolve(model, verify=False)
    size = export_version(artifact, file)
    console.results().print(f"Saved {artifact.id} to {file}, {size / 1e6:.1f} MB.", markup=False)
    console.next_step(f"on another machine, fc7 models load {file.name}")


def load(
    file: Annotated[Path, typer.Argument(metavar="FILE.fc7.tar", help="Archive written by fc7 models save.")],
    *,
    name: Annotated[str | None, typer.Option(help="Name of the model.", show_default="the name in the archive")] = None,
    home: Home = None,
) -> None:
    """Verify an archive of fc7 models save and publish it as the next version of its name."""
    artifact = import_version(ModelStore(load_settings(home=home).home), file, name=name)
    console.results().print(
        f"[green]Published {artifact.id}[/]; {len(artifact.manifest.files)} files match the manifest."
    )
    console.next_step(f"fc7 models activate {artifact.id}")


def remove(
    model: Annotated[
        str, typer.Argument(metavar="NAME:VERSION", help="Version to delete.", autocompletion=complete_model)
    ],
    *,
    home: Home = None,
) -> None:
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
    others = [each for each in store.list() if each.fingerprint == artifact.fingerprint and each.id != artifact.id]
    if artifact.fingerprint == needed and not others:
        raise ModelInUseError(artifact.id, "the model of the index's vectors")
    store.remove(artifact.name, artifact.version)
    console.results().print(f"Removed {artifact.id}. Its number is not used again.", markup=False)
    console.next_step("fc7 models list")


def verify(
    model: Annotated[
        str | None,
        typer.Argument(
            metavar="MODEL",
            help="NAME:VERSION, or NAME for its newest version.",
            show_default="all versions",
            autocompletion=complete_model,
        ),
    ] = None,
    *,
    home: Home = None,
) -> None:
    """Compare every file of a version with its checksum; exit with 1 if one differs."""
    store = ModelStore(load_settings(home=home).home)
    artifacts, broken = ([store.resolve(model, verify=False)], []) if model is not None else store.scan()
    output = console.results()
    bad = len(broken)
    for error in broken:
        output.print(f"[red]broken:[/] {escape(str(error))}")
    for artifact in artifacts:
        started = time.perf_counter()
        differing = artifact.differing()
        if differing:
            bad += 1
            output.print(
                f"[red]{artifact.id}:[/] {escape(', '.join(differing))} differ from the manifest or are missing."
            )
        else:
            count, seconds = len(artifact.manifest.files), time.perf_counter() - started
            output.print(f"[green]{artifact.id}:[/] {count} files match the manifest ({seconds:.1f} s).")
    if bad:
        console.next_step("fc7 models load FILE.fc7.tar publishes an intact copy; fc7 models remove deletes this one")
        raise typer.Exit(1)
    console.next_step("fc7 models list")


def _print(result: Comparison) -> None:
    table = Table("", *(escape(side.model) for side in result.sides), box=None, header_style="dim")
    if result.labelled:
        for name, attribute in (("top-1 error", "wrong_top1"), ("top-5 error", "wrong_top5")):
            table.add_row(name, *(f"{getattr(side, attribute) / result.labelled:.1%}" for side in result.sides))
    table.add_row("images per second", *(f"{result.images / side.seconds:.1f}" for side in result.sides))
    output = console.results()
    output.print(table)
    labelled = f", {result.labelled} of them labelled" if result.labelled else ", none in a folder named after a class"
    output.print(f"{result.images} images{labelled}, {len(result.skipped)} skipped, in batches of {result.batch}.")
    output.print(
        f"Same top-1 class for {result.same_top1 / result.images:.1%} of the images, "
        f"same top-5 classes for {result.same_top5 / result.images:.1%}."
    )
    if result.cosines:
        output.print(f"Cosine of fc7: mean {np.mean(result.cosines):.5f}, minimum {min(result.cosines):.5f}.")
    else:
        output.print("fc7 is not compared because the architectures differ.")


def _as_json(result: Comparison) -> dict[str, Any]:
    def side(each: Side) -> dict[str, Any]:
        return {
            "model": each.model,
            "top1_error": each.wrong_top1 / result.labelled if result.labelled else None,
            "top5_error": each.wrong_top5 / result.labelled if result.labelled else None,
            "images_per_second": result.images / each.seconds,
        }

    return {
        "models": [side(each) for each in result.sides],
        "images": result.images,
        "labelled": result.labelled,
        "skipped": [{"path": str(path), "reason": reason} for path, reason in result.skipped],
        "same_top1": result.same_top1 / result.images,
        "same_top5": result.same_top5 / result.images,
        "fc7_cosine": {"mean": float(np.mean(result.cosines)), "least": min(result.cosines)}
        if result.cosines
        else None,
    }
