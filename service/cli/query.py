"""`fc7 classify` and `fc7 search`: answers on the command line, from the local home and without a server.

An image that cannot be read is reported and left out; the others are answered, and the exit code is 1.
Does not: change the index (it is opened to read, also beside a running server), use more than one model.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_store.artifact import Artifact
from model_store.errors import ImageError
from model_store.image import prepare, views
from model_store.store import ModelStore
from service.settings import load_settings

if TYPE_CHECKING:
    from index.search.searcher import Mode
    from model_store.runtime.runner import Outputs, Runner

_BAR = 24

Images = Annotated[list[Path], typer.Argument(help="Image files.", show_default=False)]
Home = Annotated[Path | None, typer.Option(help="Folder of models and index [FC7_HOME].", show_default=False)]
Model = Annotated[str | None, typer.Option(help="NAME or NAME:VERSION; unset: the active one.", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object an image instead of tables.")]


class SearchMode(StrEnum):
    """How to search: by exact distance, by short codes first, or by binary codes alone."""

    EXACT = "exact"
    FAST = "fast"
    CODES = "codes"


def classify(
    images: Images,
    *,
    top: Annotated[int, typer.Option("-k", "--top", min=1, help="How many classes.")] = 5,
    ten_views: Annotated[bool, typer.Option("--ten-views", help="Average ten views: slower, more exact.")] = False,
    model: Model = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Name the most probable classes of each image."""
    from model_store.runtime.runner import average_views, top_k  # noqa: PLC0415

    count = 10 if ten_views else 1
    console = Console()
    with _loaded(home, model) as (artifact, runner):
        k = min(top, runner.classes)

        def show(path: Path, outputs: Outputs) -> None:
            indices, values = top_k(average_views(outputs.probabilities, count), k)
            found = [
                {"index": index, "label": artifact.labels[index], "probability": value}
                for index, value in zip(indices[0].tolist(), values[0].tolist(), strict=True)
            ]
            if as_json:
                _print_json({"image": str(path), "model": artifact.id, "predictions": found})
                return
            table = _table(console, path, artifact.id, "class", "probability")
            for entry in found:
                bar = "█" * round(entry["probability"] * _BAR)
                table.add_row(escape(entry["label"]), f"{entry['probability']:7.2%} {bar}")
            console.print(table)

        failed = _answer_each(images, count, runner.run, show)
    sys.exit(1 if failed else 0)


def search(
    images: Images,
    *,
    k: Annotated[int, typer.Option("-k", min=1, help="How many neighbours.")] = 6,
    mode: Annotated[
        SearchMode | None, typer.Option(help="Unset: fast where its code was learned, else exact.", show_default=False)
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Find the indexed images nearest to each image, by the active model."""
    from index.records import IndexOptions  # noqa: PLC0415
    from service.factory import open_index_of  # noqa: PLC0415

    settings = load_settings(home=home)
    console = Console()
    asked: Mode | None = None if mode is None else mode.value
    with (
        _loaded(home, None) as (artifact, runner),
        open_index_of(
            settings, IndexOptions(artifact.fingerprint, artifact.embedder, read_only=True, fast_from=1)
        ) as index,
    ):
        found_by = index.mode(asked)

        def show(path: Path, outputs: Outputs) -> None:
            [neighbours] = index.search(outputs.fc7, k, mode=found_by)
            if as_json:
                found = [{"key": near.key, "distance": near.distance, "metadata": near.metadata} for near in neighbours]
                _print_json({"image": str(path), "model": artifact.id, "mode": found_by, "neighbours": found})
                return
            table = _table(console, path, artifact.id, "nearest", "distance", "metadata")
            for near in neighbours:
                metadata = json.dumps(near.metadata, ensure_ascii=False) if near.metadata else ""
                table.add_row(escape(near.key), f"{near.distance:.2f}", escape(metadata))
            console.print(table)

        failed = _answer_each(images, 1, runner.run, show)
    sys.exit(1 if failed else 0)


@contextmanager
def _loaded(home: Path | None, model: str | None) -> Iterator[tuple[Artifact, Runner]]:
    """Load the model named, or the active one."""
    import structlog  # noqa: PLC0415

    from model_store.runtime.runner import Runner  # noqa: PLC0415
    from service.factory import runner_options  # noqa: PLC0415

    # Standard output is for answers.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(30))
    settings = load_settings(home=home)
    store = ModelStore(settings.home)
    artifact = store.active_artifact() if model is None else store.resolve(model)
    runner = Runner(artifact, runner_options(settings))
    try:
        yield runner.artifact, runner
    finally:
        runner.close()


def _answer_each(
    images: Sequence[Path],
    count: int,
    run: Callable[[NDArray[np.uint8]], Outputs],
    show: Callable[[Path, Outputs], None],
) -> int:
    """Show each image's answer as it comes; return how many could not be read."""
    max_pixels = load_settings().max_pixels
    errors = Console(stderr=True, soft_wrap=True)
    failed = 0
    for path in images:
        try:
            pixels = prepare(path.read_bytes(), max_pixels=max_pixels)
        except (OSError, ImageError) as error:
            failed += 1
            reason = error.strerror if isinstance(error, OSError) else error
            errors.print(f"[bold red]error:[/] {escape(str(path))}: {escape(str(reason))}", highlight=False)
        else:
            show(path, run(views(pixels, count)))
    return failed


def _table(console: Console, path: Path, model: str, *columns: str) -> Table:
    console.print(f"[bold]{escape(str(path))}[/]  [dim]{model}[/]", highlight=False, soft_wrap=True)
    return Table(*columns, box=None, header_style="dim", pad_edge=False)


def _print_json(answer: dict[str, Any]) -> None:
    typer.echo(json.dumps(answer, ensure_ascii=False))
