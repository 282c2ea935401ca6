"""`fc7 codes train|evaluate`: train the auto-encoder of binary codes on the index's vectors, and compare codes.

Guarantees: both commands only read the index and work while a server is running. A server uses new codes at its next
search with mode=codes.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from index.local.index import LocalImageIndex
from index.records import IndexOptions
from model_store.code_store import BITS, CodesManifest, CodeStore
from service.cli import console
from service.cli.options import AsJson, Home
from service.factory import check_local, store_of
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from index.search.code_quality import CodeQuality

app = typer.Typer(
    name="codes", help="Train and evaluate binary codes for search with mode=codes.", no_args_is_help=True
)

Sizes = Annotated[
    list[str] | None,
    typer.Option("--bits", help="Bits per code: 64, 128 or 256. Can be repeated.", metavar="BITS", show_default="256"),
]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the vectors.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of initial weights and order.")]


def _bits(text: str) -> int:
    if text not in map(str, BITS):
        raise typer.BadParameter(f"{text!r} is not 64, 128 or 256.", param_hint="--bits")
    return int(text)


@app.command()
def train(
    *,
    bits: Annotated[str, typer.Option("--bits", help="Bits per code: 64, 128 or 256.", metavar="BITS")] = "256",
    epochs: Epochs = 20,
    limit: Annotated[
        int, typer.Option(min=256, help="Maximum number of vectors to train on, sampled from the index.")
    ] = 100_000,
    plain: Annotated[
        bool, typer.Option("--plain", help="Train for reconstruction alone, without the loss term for neighbors.")
    ] = False,
    seed: Seed = 0,
    home: Home = None,
) -> None:
    """Train the auto-encoder of binary codes on the index's vectors and store it for the active model."""
    count = _bits(bits)
    from model_store.training.autoencoder import CodeOptions, export_codes, train_codes  # noqa: PLC0415 - torch

    options = (CodeOptions.of_plain_form if plain else CodeOptions)(count, epochs=epochs, seed=seed)
    settings = load_settings(home=home)
    with _open_index(settings) as (index, fingerprint):
        vectors = index.spaces.active.searcher.sample(limit, seed=seed)
    if len(vectors) < 2:
        raise typer.BadParameter(f"the index has {len(vectors)} vectors: add images first.", param_hint="--home")
    with console.ProgressBar(f"training {count} bits", "steps") as bar:
        trained = train_codes(vectors, options, lambda step, steps, loss: bar.update(step, steps, f"loss {loss:.3f}"))
    content = export_codes(trained.net, vectors)
    manifest = CodesManifest(
        bits=count,
        fingerprint=fingerprint,
        sha256=sha256(content).hexdigest(),
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        vectors=len(vectors),
        loss=trained.loss,
        training=asdict(options),
    )
    folder = CodeStore(settings.home).publish(content, manifest)
    console.say(
        f"Trained on {len(vectors):,} vectors; {count} bits leave {trained.loss:.1%} of their variance unexplained. "
        f"The codes are in {folder}."
    )
    console.next_step(f"fc7 search IMAGE --mode codes, or fc7 codes evaluate --bits {count}")


@app.command()
def evaluate(
    *,
    bits: Sizes = None,
    classes: Annotated[
        str,
        typer.Option(
            "--class", metavar="FIELD", help="Metadata field with the class.", show_default="the folder in the key"
        ),
    ] = "",
    queries: Annotated[int, typer.Option(min=1, help="Number of images used as queries.")] = 500,
    limit: Annotated[
        int, typer.Option(min=256, help="Maximum number of images to search, sampled from the index.")
    ] = 20_000,
    pixels: Annotated[
        bool, typer.Option("--pixels/--no-pixels", help="Compare raw pixels (32x32) and an auto-encoder of them.")
    ] = True,
    plain: Annotated[
        bool, typer.Option("--plain", help="Also train and compare auto-encoders by reconstruction alone.")
    ] = False,
    epochs: Epochs = 20,
    seed: Seed = 0,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="PNG file to draw the results into.")] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Compare the trained codes with other codes of the same size: recall, class precision, size and speed."""
    sizes = sorted({_bits(each) for each in bits or ["256"]})
    if plot is not None and not plot.resolve().parent.is_dir():
        raise typer.BadParameter(f"The folder {plot.parent} does not exist.", param_hint="--plot")
    # Imported before the work, so that a missing package is reported immediately.
    from service.cli.codes.comparison import collect, compare_codes  # noqa: PLC0415 - faiss, torch
    from service.cli.codes.plot import draw_codes  # noqa: PLC0415 - matplotlib

    settings = load_settings(home=home)
    with _open_index(settings) as (index, fingerprint):
        images, raw_pixels = collect(index, classes or None, limit, queries, seed, pixels=pixels)
    find_encoder = partial(CodeStore(settings.home).find, fingerprint)
    results = compare_codes(images, raw_pixels, sizes, find_encoder, epochs=epochs, seed=seed, plain=plain)
    if plot is not None:
        draw_codes(results, plot)
    if as_json:
        console.print_json([asdict(each) for each in results])
        return
    console.show(_table(results))
    console.say(
        f"{len(images.vectors):,} images, {len(images.queries):,} of them queries, "
        + ("no classes" if images.classes is None else f"{len(set(images.classes.tolist()))} classes")
    )
    console.next_step("fc7 search IMAGE --mode codes")


@contextmanager
def _open_index(settings: Settings) -> Iterator[tuple[LocalImageIndex, str]]:
    """Open the index of the active model read-only."""
    check_local(settings, "binary codes are learned from an index in FC7_HOME", "Unset FC7_INDEX_URI for that.")
    artifact = store_of(settings).active_artifact(verify=False)
    options = IndexOptions(artifact.fingerprint, artifact.embedder, read_only=True)
    with LocalImageIndex.open(settings.home, options) as index:
        yield index, artifact.fingerprint


def _table(results: list[CodeQuality]) -> Table:
    table = Table(
        "code", "bytes", "recall@10", "10 in 100", "class precision@6", "mAP", "queries/s", box=None, header_style="dim"
    )
    for each in results:
        values = (each.recall, each.recall_wide, each.precision, each.mean_average_precision)
        table.add_row(
            each.name,
            str(each.bytes),
            *("" if value is None else f"{value:.3f}" for value in values),
            f"{each.queries_per_second:,.0f}",
        )
    return table
