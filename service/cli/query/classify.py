"""`fc7 classify`: the most probable classes of images.

Guarantees: an image that cannot be read is reported and skipped; the others are processed, and the exit code is 1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape

from index.labels import LABEL_FIELD, VOTERS
from model_store.image import views
from service.cli import console
from service.cli.options import (
    AsJson,
    Home,
    LabelField,
    ModelOption,
    Threshold,
    Views,
)
from service.cli.query.images import finish, load_runner, novelty_of, read_images, show_novelty, table_of
from service.cli.query.predictions import classify_to_file
from service.cli.query.votes import Voting, classify_by_neighbours
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model_store.runtime.runner import Runner


_BAR = 24  # characters


def classify(
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE|SOURCE",
            help="Image files; with --out a folder, an archive or a URI such as s3://BUCKET/PATH.",
            show_default=False,
        ),
    ],
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write a row for each image of SOURCE to a .csv, .jsonl or .parquet file.",
            show_default=False,
        ),
    ] = None,
    embeddings: Annotated[bool, typer.Option("--embeddings", help="With --out: include the fc7 vectors.")] = False,
    top: Annotated[int, typer.Option("-k", "--top", min=1, help="Number of classes per image.")] = 5,
    view_count: Views = 1,
    by: Annotated[
        Literal["network", "neighbours"],
        typer.Option(help="What classifies: the network, or a vote of the nearest labeled images of the index."),
    ] = "network",
    neighbours: Annotated[
        int, typer.Option(min=1, max=1000, help="Number of images that vote, with --by neighbours.")
    ] = VOTERS,
    field: LabelField = LABEL_FIELD,
    threshold: Threshold = None,
    model: ModelOption = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print the most probable classes of each image, or write those of many images to a file; it can be resumed."""
    settings = load_settings(home=home)
    if threshold is None:
        threshold = settings.novelty_threshold
    if by == "neighbours":
        if out is not None:
            raise typer.BadParameter("it cannot be combined with --out.", param_hint="--by")
        how = Voting(top, view_count, threshold, neighbours, field)
        classify_by_neighbours(images, how, settings=settings, model=model, as_json=as_json)
        return
    if out is not None:
        from index.bulk.prediction_file import Options  # noqa: PLC0415

        options = Options(top, embeddings, view_count, threshold)
        classify_to_file(images, out, options, settings, model, as_json=as_json)
        return
    if embeddings:
        raise typer.BadParameter("it requires --out.", param_hint="--embeddings")
    if folder := next((image for image in images if "://" in image or Path(image).is_dir()), None):
        raise typer.BadParameter(f"to classify all images of {folder}, add --out FILE.", param_hint="--out")
    _classify_by_network(images, top, view_count, threshold, settings=settings, model=model, as_json=as_json)


def _classify_by_network(
    images: Sequence[str],
    top: int,
    view_count: int,
    threshold: float,
    *,
    settings: Settings,
    model: str | None,
    as_json: bool,
) -> None:
    """Print the most probable classes of each image."""
    found: list[dict[str, Any]] = []
    skipped: list[tuple[Path, str]] = []
    with load_runner(settings, model) as (artifact, runner):
        answer = _classifier(runner, top, view_count, threshold)
        for path, pixels in read_images([Path(image) for image in images], settings, skipped):
            result = answer(pixels)
            found.append({"image": str(path), **result})
            if not as_json:
                table = table_of(path, artifact.id, "class", "probability")
                for entry in result["predictions"]:
                    bar = "█" * round(entry["probability"] * _BAR)
                    table.add_row(escape(entry["label"]), f"{entry['probability']:7.2%} {bar}")
                console.show(table)
                show_novelty(result["novelty"])
    finish({"model": artifact.id, "results": found}, skipped, "fc7 search IMAGE finds similar images", as_json=as_json)


def _classifier(
    runner: Runner, top: int, view_count: int, threshold: float
) -> Callable[[NDArray[np.uint8]], dict[str, Any]]:
    """Return a function that classifies a prepared image, uint8 [256, 256, 3]. Its results are JSON types."""
    from model_store.runtime.runner import average_views, top_k  # noqa: PLC0415

    labels, measure = runner.artifact.labels, novelty_of(runner.artifact, threshold)

    def classify_one(pixels: NDArray[np.uint8]) -> dict[str, Any]:
        outputs = runner.run(views(pixels, view_count))
        probabilities, fc7 = (average_views(values, view_count) for values in outputs)
        indices, values = top_k(probabilities, min(top, runner.classes))
        predictions = [
            {"index": index, "label": labels[index], "probability": value}
            for index, value in zip(indices[0].tolist(), values[0].tolist(), strict=True)
        ]
        return {"predictions": predictions, "novelty": measure(fc7, views(pixels))}

    return classify_one
