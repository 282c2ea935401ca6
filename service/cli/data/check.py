"""`fc7 data check`: what is wrong with a data set, on the terminal, as JSON, and as an HTML page with pictures."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from model_store.cores import usable_cores
from model_store.decoder.decoder import Decoder
from model_store.durable import write_atomic
from model_store.image import views
from model_store.store import ModelStore
from service.cli import console
from service.cli.data.commands import DataSource
from service.cli.data.unpack import data_folder
from service.cli.options import AsJson, Home, ModelOption, find_version
from service.factory import decode_limits, runner_options
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model_store.training.check.check import Embed
    from model_store.training.check.findings import Report

_EXAMPLES = 5


def check(
    source: DataSource,
    *,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write a page with pictures.", show_default=False)
    ] = None,
    model: ModelOption = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Find unreadable files, copies, leaks between splits, likely wrong labels and outliers; nothing is changed."""
    from model_store.training.check.check import check_source  # noqa: PLC0415 - torch
    from model_store.training.check.html import render  # noqa: PLC0415
    from model_store.training.data.sources import find_source  # noqa: PLC0415

    settings = load_settings(home=home)
    html = None if html is None else html.expanduser()
    if html is not None and not html.absolute().parent.is_dir():
        raise typer.BadParameter(f"the folder {html.absolute().parent} does not exist.", param_hint="--html")
    found = find_source(data_folder(source, settings.home))
    with (
        Decoder(decode_limits(settings)) as decoder,
        ThreadPoolExecutor(usable_cores()) as workers,
        _embedding(settings, model) as (embed, features),
    ):
        with console.ProgressBar("reading", "images") as bar:
            report = check_source(
                found, decoder=decoder, workers=workers, embed=embed, features=features, progress=bar.step
            )
        if html is not None:
            write_atomic(html, render(report, decoder).encode())
    if as_json:
        console.print_json(report.to_dict())
    else:
        _print(report)
    if html is not None:
        console.say(f"{html}: the report with pictures.")
    quoted = shlex.quote(str(source))
    if report.problems:
        console.next_step(f"correct what cannot be used for training, then fc7 data check {quoted}")
    else:
        console.next_step(f"fc7 train {quoted} --name NAME" if html else f"fc7 data check {quoted} --html report.html")


@contextmanager
def _embedding(settings: Settings, model: str | None) -> Iterator[tuple[Embed | None, str]]:
    """Yield how pictures are embedded, and its name: by `model`, by the active version, or, without one, not at all."""
    from model_store.runtime.runner import Runner  # noqa: PLC0415
    from model_store.training.check.check import NO_MODEL  # noqa: PLC0415

    store = ModelStore(settings.home)
    if model is None and store.active() is None:
        console.say(
            "No model is active, so pictures are compared by their colors, without shapes. To compare them by a model, "
            "run fc7 import, or fc7 train and fc7 export, and then the check again."
        )
        yield None, NO_MODEL
        return
    runner = Runner(find_version(store, model), runner_options(settings))

    def embed(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
        return runner.run(views(pixels)).fc7

    try:
        yield embed, f"fc7 of {runner.artifact.id}"
    finally:
        runner.close()


def _print(report: Report) -> None:
    table = Table("class", *report.counts)
    for label in report.classes:
        table.add_row(escape(label), *(f"{counts[label]:,}" for counts in report.counts.values()))
    table.add_section()
    table.add_row("all", *(f"{sum(counts.values()):,}" for counts in report.counts.values()))
    console.show(table)
    for problem in report.problems:
        console.warn(problem)
    for note in report.notes:
        console.say(note)
    console.say_skipped(report.skipped)
    findings = Table("finding", "count", "examples", box=None, header_style="dim")
    for title, groups in (
        ("leaks between splits", report.select(leaks=True)),
        ("the same picture in two classes", report.select(conflicts=True)),
        ("groups of exact copies", report.select(exact=True)),
        ("groups of near-identical pictures", report.select(exact=False)),
    ):
        shown = (" = ".join(picture.image.name for picture in group.pictures[:2]) for group in groups[:_EXAMPLES])
        findings.add_row(title, f"{len(groups):,}", escape("; ".join(shown)))
    wrong = (f"{item.picture.image.name} ({item.suggested}?)" for item in report.labels.wrong[:_EXAMPLES])
    count = f"{len(report.labels.wrong):,}" if report.labels_note is None else "not judged"
    findings.add_row("likely wrong labels", count, escape("; ".join(wrong)))
    far = (item.picture.image.name for item in report.outliers[:_EXAMPLES])
    findings.add_row("outliers", f"{len(report.outliers):,}", escape("; ".join(far)))
    small = (picture.image.name for picture in report.small[:_EXAMPLES])
    findings.add_row("very small pictures", f"{len(report.small):,}", escape("; ".join(small)))
    console.show(findings)
    console.say(f"Pictures were compared by {report.features}.")
    if report.labels_note is not None:
        console.warn(report.labels_note)
    else:
        console.say(
            f"Labels were judged by a classifier on these, which agrees with {report.labels.accuracy:.0%} of them. The "
            "lower this is, the more of the suspected labels are correct. At most one in 20 labels (or 10) is listed: "
            "correct the wrong ones, and check again."
        )
