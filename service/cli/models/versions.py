"""`fc7 models compare|export|import|remove|verify`: two versions side by side, and versions as files.

Does not: tell a running server of anything; a version that it has in memory stays there.
"""

from __future__ import annotations

import json
import logging
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.table import Table

from index.errors import IndexUnavailableError, IndexUnreachableError
from model_store.archive import export_version, import_version
from model_store.compare import Comparison, Side, compare
from model_store.errors import ModelInUseError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from service.cli.models.commands import AsJson, Home
from service.factory import read_stats_of
from service.settings import load_settings

_MOST_LISTED = 20

Model = Annotated[str, typer.Argument(metavar="MODEL", help="NAME:VERSION, or NAME for its newest version.")]
Version = Annotated[str, typer.Argument(metavar="NAME:VERSION", help="One version.")]


def compare_versions(
    first: Model,
    second: Model,
    *,
    data: Annotated[Path, typer.Option(metavar="DIR", help="Images, at any depth; <class>/* counts errors, too.")],
    batch: Annotated[int, typer.Option(min=1, max=1024, help="Images in one run.")] = 16,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Run two versions on a folder: how often they agree, how often each is wrong, how fast each is."""
    # Standard output is for answers: what the runner logs when it loads stays away from it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    settings = load_settings(home=home)
    store = ModelStore(settings.home)
    options = RunnerOptions(device=settings.device, intra_op_threads=settings.threads, batches=batch > 1)
    one, other = (Runner(store.resolve(reference), options) for reference in (first, second))
    console = Console(stderr=True, soft_wrap=True, highlight=False)
    with Progress(TextColumn("comparing"), BarColumn(), MofNCompleteColumn(), console=console, transient=True) as bar:
        task = bar.add_task("comparing", total=None)
        result = compare(
            one, other, data, batch=batch, progress=lambda done, total: bar.update(task, completed=done, total=total)
        )
    for path, reason in result.skipped[:_MOST_LISTED]:
        console.print(f"skipped {path}: {reason}", markup=False)
    if len(result.skipped) > _MOST_LISTED:
        console.print(f"... and {len(result.skipped) - _MOST_LISTED} more")
    if as_json:
        typer.echo(json.dumps(_as_json(result), ensure_ascii=False, indent=2))
    else:
        _print(result)


def export(
    model: Model,
    file: Annotated[Path, typer.Argument(metavar="FILE.fc7.tar", help="The archive to write.")],
    *,
    home: Home = None,
) -> None:
    """Write a version into one file, with the hashes that prove it whole."""
    artifact = ModelStore(load_settings(home=home).home).resolve(model, verify=False)
    size = export_version(artifact, file)
    _say(f"{artifact.id} is in {file}, {size / 1e6:.1f} MB; elsewhere: fc7 models import {file.name}")


def import_archive(
    file: Annotated[Path, typer.Argument(metavar="FILE.fc7.tar", help="An archive of fc7 models export.")],
    *,
    name: Annotated[str | None, typer.Option(help="Another name for it.", show_default=False)] = None,
    home: Home = None,
) -> None:
    """Publish the version in an archive, as the next one of its name; it is compared with its hashes first."""
    artifact = import_version(ModelStore(load_settings(home=home).home), file, name=name)
    _say(
        f"{artifact.id} is published, {len(artifact.manifest.files)} files as in its manifest. To serve it: "
        f"fc7 models activate {artifact.id}"
    )


def remove(model: Version, *, home: Home = None) -> None:
    """Delete a version for good. The active one stays, and the one that made the index's vectors."""
    settings = load_settings(home=home)
    store = ModelStore(settings.home)
    artifact = store.resolve(model, verify=False)
    if ":" not in model:
        raise typer.BadParameter(f"which version of {model}? Such as {artifact.id}")
    try:
        needed = read_stats_of(settings).fingerprint
    except IndexUnreachableError:
        raise  # nobody knows whether it is needed
    except IndexUnavailableError:
        needed = ""
    others = [each for each in store.list() if each.fingerprint == artifact.fingerprint and each.id != artifact.id]
    if artifact.fingerprint == needed and not others:
        raise ModelInUseError(artifact.id, "the model of the index's vectors")
    store.remove(artifact.name, artifact.version)
    _say(f"{artifact.id} is removed; its number is not given again")


def verify(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="NAME or NAME:VERSION; all versions by default.")
    ] = None,
    *,
    home: Home = None,
) -> None:
    """Compare every file with its hash, and name those that differ; the exit code is 1 then."""
    store = ModelStore(load_settings(home=home).home)
    artifacts, broken = ([store.resolve(model, verify=False)], []) if model is not None else store.scan()
    bad = len(broken)
    for error in broken:
        _say(f"[red]broken:[/] {escape(str(error))}")
    for artifact in artifacts:
        started = time.perf_counter()
        differing = artifact.differing()
        if differing:
            bad += 1
            _say(f"[red]{artifact.id}:[/] {escape(', '.join(differing))} differ from the manifest, or are missing")
        else:
            count, seconds = len(artifact.manifest.files), time.perf_counter() - started
            _say(f"[green]{artifact.id}:[/] {count} files as in the manifest ({seconds:.1f} s)")
    if bad:
        raise typer.Exit(1)


def _say(text: str) -> None:
    Console(soft_wrap=True, highlight=False).print(text)


def _print(result: Comparison) -> None:
    table = Table("", *(escape(side.model) for side in result.sides), box=None, header_style="dim")
    if result.labelled:
        for name, attribute in (("top-1 error", "wrong_top1"), ("top-5 error", "wrong_top5")):
            table.add_row(name, *(f"{getattr(side, attribute) / result.labelled:.1%}" for side in result.sides))
    table.add_row("images a second", *(f"{result.images / side.seconds:.1f}" for side in result.sides))
    console = Console(soft_wrap=True, highlight=False)
    console.print(table)
    labelled = f", {result.labelled} of them labelled" if result.labelled else ", none in a folder named as a class"
    console.print(f"{result.images} images{labelled}, {len(result.skipped)} skipped; runs of {result.batch}.")
    console.print(
        f"The same first class for {result.same_top1 / result.images:.1%}, "
        f"the same five for {result.same_top5 / result.images:.1%}."
    )
    if result.cosines:
        console.print(f"Cosine of fc7: {np.mean(result.cosines):.5f} on average, {min(result.cosines):.5f} at least.")
    else:
        console.print("fc7 is not compared: the nets are of different architectures.")


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
