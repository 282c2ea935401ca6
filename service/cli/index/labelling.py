"""`fc7 index suggestions|map`: what to label next, and where the images lie; also while a server is running."""

from __future__ import annotations

import base64
import csv
import io
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Final

import typer
from rich.markup import escape
from rich.table import Table

from index.errors import PictureNotFoundError, TargetExistsError
from index.filters import parse_where
from index.interface import ImageIndex
from index.labels import LABEL_FIELD
from index.projection.index_map import Method
from index.projection.maps import MapPage, Maps
from index.projection.tsne import import_opentsne
from index.records import IndexOptions
from index.suggestions import KEY_FIELD, suggest
from model_store.durable import write_atomic
from service.cli import console
from service.cli.options import AsJson, Home, Where
from service.factory import open_index_of, read_stats_of
from service.settings import Settings, load_settings

_ALL: Final = 1 << 40
Field = Annotated[str, typer.Option("--field", metavar="NAME", help="Metadata field of the labels.")]


def suggestions(
    *,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, max=100_000, help="Number of images.")] = 20,
    field: Field = LABEL_FIELD,
    where: Where = None,
    label_studio: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Write the images as tasks that Label Studio imports, with their thumbnails.",
            show_default=False,
        ),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """List unlabeled images, those first whose labels would teach most."""
    with _opened(load_settings(home=home)) as index:
        found = suggest(index, field, limit, where=parse_where(where or []))
        if label_studio is not None:
            tasks = [_task(index, each.key) for each in found.suggestions]
            _write_new(label_studio, json.dumps([task for task in tasks if task], ensure_ascii=False).encode())
    if as_json:
        console.print_json(asdict(found))
        return
    table = Table("image", "score", "why", box=None)
    for each in found.suggestions:
        table.add_row(escape(each.key), f"{each.score:.2f}", escape(each.text))
    console.show(table)
    console.say(f"{found.unlabeled:,} images have no {field}, {found.labeled:,} have one. {found.note}".rstrip())
    if label_studio is not None:
        console.next_step(f"import {label_studio} in Label Studio")


def compute_map(
    *,
    out: Annotated[
        Path | None,
        typer.Option("--out", metavar="FILE", help="Write key, x, y and label to a .csv file.", show_default=False),
    ] = None,
    method: Annotated[
        Method, typer.Option(help="tsne keeps neighbors together; pca takes seconds and needs no extra package.")
    ] = Method.TSNE,
    field: Field = LABEL_FIELD,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Compute the map of the index, which the server uses from then on."""
    settings = load_settings(home=home)
    if method is Method.TSNE:
        import_opentsne()
    maps, stop = Maps(settings.home / "maps"), threading.Event()
    with _opened(settings) as index, console.ProgressBar("computing", "%") as bar:
        made = maps.compute(index, method, stop.is_set, lambda share: bar.update(round(100 * share), 100))
        page = maps.page(index, field, _ALL)
    if out is not None:
        _write_new(out, _as_csv(page))
    used = Method.PCA if made is None else made.method
    if as_json:
        console.print_json({"model": page.model, "method": used, "images": len(page.keys)})
        return
    console.say(f"The map shows {len(page.keys):,} images ({used}).")
    console.next_step("fc7 serve, then GET /v1/index/map")


@contextmanager
def _opened(settings: Settings) -> Iterator[ImageIndex]:
    stats = read_stats_of(settings)
    with open_index_of(settings, IndexOptions(stats.fingerprint, stats.model, read_only=True)) as index:
        yield index


def _task(index: ImageIndex, key: str) -> dict[str, Any] | None:
    """Return a task of Label Studio with the thumbnail of an image, or None if it has none."""
    try:
        picture = index.picture(key)
    except PictureNotFoundError:
        return None
    return {"data": {"image": f"data:image/jpeg;base64,{base64.b64encode(picture).decode()}", KEY_FIELD: key}}


def _as_csv(page: MapPage) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["key", "x", "y", "label"])
    for key, (x, y), label in zip(page.keys, page.positions.tolist(), page.labels, strict=True):
        writer.writerow([key, round(x, 4), round(y, 4), label])
    return text.getvalue().encode("utf-8", "surrogatepass")


def _write_new(path: Path, data: bytes) -> None:
    """Write a file. Raises TargetExistsError, OSError."""
    path = path.expanduser()
    if path.exists():
        raise TargetExistsError(path, "Choose another name, or delete the file")
    write_atomic(path, data)
