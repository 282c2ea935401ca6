"""`fc7 search`: the indexed images most similar to each image.

Guarantees: an image that cannot be read is reported and skipped; the others are processed, and the exit code is 1.
The index is opened read-only, also while a server is running.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.markup import escape

from model_store.image import views
from service.cli import console
from service.cli.options import (
    AsJson,
    Home,
    MaxDistance,
    ModelOption,
    Threshold,
    Where,
)
from service.cli.query.images import Images, finish, load_runner, novelty_of, read_images, show_novelty, table_of
from service.settings import load_settings

if TYPE_CHECKING:
    pass


def search(
    images: Images,
    *,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of neighbors per image.")] = 6,
    mode: Annotated[
        Literal["exact", "fast", "codes"] | None,
        typer.Option(help="How to search.", show_default="fast if its codes are trained, else exact"),
    ] = None,
    max_distance: MaxDistance = None,
    where: Where = None,
    threshold: Threshold = None,
    model: ModelOption = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Find the indexed images most similar to each image."""
    from index.filters import parse_where  # noqa: PLC0415
    from index.records import IndexOptions  # noqa: PLC0415
    from service.factory import open_index_of  # noqa: PLC0415

    settings, filters = load_settings(home=home), parse_where(where or [])
    if threshold is None:
        threshold = settings.novelty_threshold
    found: list[dict[str, Any]] = []
    skipped: list[tuple[Path, str]] = []
    with (
        load_runner(settings, model) as (artifact, runner),
        open_index_of(
            settings, IndexOptions(artifact.fingerprint, artifact.embedder, read_only=True, fast_from=1)
        ) as index,
    ):
        used, measure = index.mode(mode), novelty_of(artifact, threshold)
        for path, pixels in read_images(images, settings, skipped):
            fc7 = runner.run(views(pixels)).fc7
            [neighbours] = index.search(fc7, k, where=filters, mode=used, max_distance=max_distance)
            novelty = measure(fc7, views(pixels))
            entries = [{"key": near.key, "distance": near.distance, "metadata": near.metadata} for near in neighbours]
            found.append({"image": str(path), "neighbours": entries, "novelty": novelty})
            if not as_json:
                table = table_of(path, artifact.id, "nearest", "distance", "metadata")
                for near in neighbours:
                    metadata = json.dumps(near.metadata, ensure_ascii=False) if near.metadata else ""
                    table.add_row(escape(near.key), f"{near.distance:.2f}", escape(metadata))
                console.show(table)
                show_novelty(novelty)
    document = {"model": artifact.id, "mode": used, "results": found}
    finish(document, skipped, "fc7 serve searches over HTTP", as_json=as_json)
