"""`fc7 embed`: the fc7 vectors of images, from the local home and without a server.

Guarantees: an image that cannot be read is reported and skipped; the others are embedded, and the exit code is 1.
Out of scope: many images; `fc7 classify SOURCE --out FILE --embeddings` can be resumed.
"""

from __future__ import annotations

import base64
import io
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer

from model_store.durable import write_atomic
from model_store.image import views
from service.cli import console
from service.cli.options import AsJson, Home, ModelOption, Views
from service.cli.query.images import Images, load_runner, read_images
from service.settings import load_settings


def embed(
    images: Images,
    *,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE.npy",
            help="Write the vectors to a NumPy file, float32 [n, 4096], instead of printing them.",
            show_default=False,
        ),
    ] = None,
    encoding: Annotated[
        Literal["float", "base64"],
        typer.Option(help="How to print a vector: as numbers, or as base64 of float32 (little-endian)."),
    ] = "float",
    view_count: Views = 1,
    model: ModelOption = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print the fc7 vector of each image, one JSON object per line."""
    from model_store.runtime.runner import average_views  # noqa: PLC0415

    settings = load_settings(home=home)
    if out is not None and out.suffix != ".npy":
        raise typer.BadParameter("the file must end with .npy.", param_hint="--out")
    found: list[dict[str, Any]] = []
    vectors = []
    skipped: list[tuple[Path, str]] = []
    with load_runner(settings, model) as (artifact, runner):
        for path, pixels in read_images(images, settings, skipped):
            [vector] = average_views(runner.run(views(pixels, view_count)).fc7, view_count)
            vectors.append(vector)
            entry: dict[str, Any] = {"image": str(path)}
            if out is None:
                data = vector.astype("<f4").tobytes()
                entry["embedding"] = vector.tolist() if encoding == "float" else base64.b64encode(data).decode()
            found.append(entry)
            if out is None and not as_json:
                typer.echo(console.printable(json.dumps(entry, ensure_ascii=False)))
    if out is not None:
        content = io.BytesIO()
        np.save(content, np.asarray(vectors, np.float32).reshape(-1, 4096))
        write_atomic(out, content.getvalue())
        console.say(f"{out}: {len(vectors)} vectors of {artifact.id}, in the order of the readable images.")
    if as_json:
        entries = [{"path": str(path), "reason": reason} for path, reason in skipped]
        console.print_json({"model": artifact.id, "dimensions": 4096, "results": found, "skipped": entries})
    if skipped:
        raise typer.Exit(1)
