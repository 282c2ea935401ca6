"""`fc7 classify` and `fc7 search`: results on the command line, from the local home and without a server.

Guarantees: an image that cannot be read is reported and skipped; the others are processed, and the exit code is 1.
The index is opened read-only, also while a server is running.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from model_store.artifact import Artifact
from model_store.errors import ImageError
from model_store.image import views
from model_store.store import ModelStore
from service.cli import console
from service.cli.options import AsJson, Home, ModelOption, Views, Where, find_version
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model_store.runtime.runner import Runner

_BAR = 24  # characters

Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.", show_default=False)]


def classify(
    images: Images,
    *,
    top: Annotated[int, typer.Option("-k", "--top", min=1, help="Number of classes per image.")] = 5,
    view_count: Views = 1,
    model: ModelOption = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print the most probable classes of each image."""
    from model_store.runtime.runner import average_views, top_k  # noqa: PLC0415

    settings = load_settings(home=home)
    found: list[dict[str, Any]] = []
    skipped: list[tuple[Path, str]] = []
    with _load_runner(settings, model) as (artifact, runner):
        for path, pixels in _read_images(images, settings, skipped):
            outputs = runner.run(views(pixels, view_count))
            indices, values = top_k(average_views(outputs.probabilities, view_count), min(top, runner.classes))
            predictions = [
                {"index": index, "label": artifact.labels[index], "probability": value}
                for index, value in zip(indices[0].tolist(), values[0].tolist(), strict=True)
            ]
            found.append({"image": str(path), "predictions": predictions})
            if not as_json:
                table = _table(path, artifact.id, "class", "probability")
                for entry in predictions:
                    bar = "█" * round(entry["probability"] * _BAR)
                    table.add_row(escape(entry["label"]), f"{entry['probability']:7.2%} {bar}")
                console.show(table)
    _finish({"model": artifact.id, "results": found}, skipped, "fc7 search IMAGE finds similar images", as_json=as_json)


def search(
    images: Images,
    *,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of neighbors per image.")] = 6,
    mode: Annotated[
        Literal["exact", "fast", "codes"] | None,
        typer.Option(help="How to search.", show_default="fast if its codes are trained, else exact"),
    ] = None,
    where: Where = None,
    model: ModelOption = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Find the indexed images most similar to each image."""
    from index.filters import parse_where  # noqa: PLC0415
    from index.records import IndexOptions  # noqa: PLC0415
    from service.factory import open_index_of  # noqa: PLC0415

    settings, filters = load_settings(home=home), parse_where(where or [])
    found: list[dict[str, Any]] = []
    skipped: list[tuple[Path, str]] = []
    with (
        _load_runner(settings, model) as (artifact, runner),
        open_index_of(
            settings, IndexOptions(artifact.fingerprint, artifact.embedder, read_only=True, fast_from=1)
        ) as index,
    ):
        used = index.mode(mode)
        for path, pixels in _read_images(images, settings, skipped):
            [neighbours] = index.search(runner.run(views(pixels)).fc7, k, where=filters, mode=used)
            entries = [{"key": near.key, "distance": near.distance, "metadata": near.metadata} for near in neighbours]
            found.append({"image": str(path), "neighbours": entries})
            if not as_json:
                table = _table(path, artifact.id, "nearest", "distance", "metadata")
                for near in neighbours:
                    metadata = json.dumps(near.metadata, ensure_ascii=False) if near.metadata else ""
                    table.add_row(escape(near.key), f"{near.distance:.2f}", escape(metadata))
                console.show(table)
    document = {"model": artifact.id, "mode": used, "results": found}
    _finish(document, skipped, "fc7 serve searches over HTTP", as_json=as_json)


@contextmanager
def _load_runner(settings: Settings, model: str | None) -> Iterator[tuple[Artifact, Runner]]:
    """Load the named version, or the active one."""
    from model_store.runtime.runner import Runner  # noqa: PLC0415
    from service.factory import runner_options  # noqa: PLC0415

    runner = Runner(find_version(ModelStore(settings.home), model), runner_options(settings))
    try:
        yield runner.artifact, runner
    finally:
        runner.close()


def _read_images(
    paths: Sequence[Path], settings: Settings, skipped: list[tuple[Path, str]]
) -> Iterator[tuple[Path, NDArray[np.uint8]]]:
    """Yield each readable image as uint8 [256, 256, 3]; report the others and add them to `skipped`."""
    from model_store.decoder.decoder import Decoder  # noqa: PLC0415
    from service.factory import decode_limits  # noqa: PLC0415

    with Decoder(decode_limits(settings)) as decoder:
        for path in paths:
            try:
                pixels = decoder.prepare(path.read_bytes())
            except (OSError, ImageError) as error:
                reason = str((isinstance(error, OSError) and error.strerror) or error)
                skipped.append((path, reason))
                console.error(f"{path}: {reason}")
            else:
                yield path, pixels


def _table(path: Path, model: str, *columns: str) -> Table:
    console.show(f"[bold]{escape(str(path))}[/]  [dim]{model}[/]")
    return Table(*columns, box=None, header_style="dim", pad_edge=False)


def _finish(document: dict[str, Any], skipped: list[tuple[Path, str]], following: str, *, as_json: bool) -> None:
    """Print the document with the skipped images as JSON, or the next step; exit with 1 if an image was skipped."""
    if as_json:
        entries = [{"path": str(path), "reason": reason} for path, reason in skipped]
        console.print_json(document | {"skipped": entries})
    else:
        console.next_step(following)
    if skipped:
        raise typer.Exit(1)
