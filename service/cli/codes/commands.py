"""`fc7 codes`: train the auto-encoder that makes binary codes of the index's vectors, and hold it against other codes.

Promises: both commands read the index beside a running server, and change nothing in it; a server takes the codes at
the next search with mode=codes.
Does not: import torch unless a command runs; the serving installation has no torch, and says so.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import numpy as np
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from index.local.index import LocalImageIndex
from index.records import IndexOptions
from model_store.code_store import BITS, CodesManifest, CodeStore
from model_store.store import ModelStore
from service.cli.extras import training_extra
from service.factory import check_local
from service.settings import load_settings

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from index.search.code_quality import CodeQuality

app = typer.Typer(name="codes", help="Binary codes of the index's vectors, for mode=codes.", no_args_is_help=True)


Home = Annotated[Path | None, typer.Option(help="Folder of all state [FC7_HOME].", show_default=False)]
Sizes = Annotated[
    list[str] | None,
    typer.Option("--bits", help="64, 128 or 256, the default; may be repeated.", metavar="BITS", show_default=False),
]
Plain = Annotated[bool, typer.Option("--plain", help="Reconstruction alone, without the term for neighbours.")]
Epochs = Annotated[int, typer.Option(min=1, help="Passes over the vectors.")]
Seed = Annotated[int, typer.Option(min=0, help="Seed of the first weights and of the order.")]


def _bits(text: str) -> int:
    if text not in map(str, BITS):
        raise typer.BadParameter(f"{text!r} is not 64, 128 or 256", param_hint="--bits")
    return int(text)


@app.command()
def train(
    *,
    bits: Annotated[str, typer.Option("--bits", help="64, 128 or 256.", metavar="BITS")] = "256",
    epochs: Epochs = 20,
    limit: Annotated[int, typer.Option(min=256, help="Most vectors to train on, drawn from the index.")] = 100_000,
    plain: Plain = False,
    seed: Seed = 0,
    home: Home = None,
) -> None:
    """Train the auto-encoder on the vectors of the index, and put it beside the model."""
    count = _bits(bits)
    with training_extra():
        from model_store.training.autoencoder import CodeOptions, export_codes, train_codes  # noqa: PLC0415 - torch
    options = (CodeOptions.of_plain_form if plain else CodeOptions)(count, epochs=epochs, seed=seed)
    settings = load_settings(home=home)
    with _index(home) as (index, fingerprint):
        vectors = index.spaces.active.searcher.sample(limit, seed=seed)
    if len(vectors) < 2:
        raise typer.BadParameter(f"the index has {len(vectors)} vectors: add images first", param_hint="--home")
    with _bar(f"training {count} bits") as advance:
        trained = train_codes(vectors, options, advance)
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
    Console(soft_wrap=True, highlight=False).print(
        f"{len(vectors):,} vectors, {trained.loss:.1%} of their variance left by {count} bits. Written: {folder}"
    )


@app.command()
def evaluate(
    *,
    bits: Sizes = None,
    classes: Annotated[
        str, typer.Option("--class", metavar="FIELD", help="Metadata field of the class; unset: the key's folder.")
    ] = "",
    queries: Annotated[int, typer.Option(min=1, help="How many of the images are queries.")] = 500,
    limit: Annotated[int, typer.Option(min=256, help="Most images to search in, drawn from the index.")] = 20_000,
    pixels: Annotated[
        bool, typer.Option("--pixels/--no-pixels", help="Also raw pixels (32x32) and an auto-encoder of them.")
    ] = True,
    plain: Annotated[
        bool, typer.Option("--plain", help="Also auto-encoders by reconstruction alone, trained here.")
    ] = False,
    epochs: Epochs = 20,
    seed: Seed = 0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures to this JSON file.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Also draw the figures into this PNG file.")] = None,
    home: Home = None,
) -> None:
    """Hold the trained codes against others of the same size: recall, classes, bytes, speed."""
    counts = sorted({_bits(each) for each in bits or ["256"]})
    for path, option in ((out, "--out"), (plot, "--plot")):
        if path is not None and not path.resolve().parent.is_dir():
            raise typer.BadParameter(f"there is no folder {path.parent}", param_hint=option)
    with training_extra():
        import matplotlib as _  # noqa: F401, PLC0415 - before the work

        from model_store.training.autoencoder import CodeOptions, train_codes  # noqa: PLC0415 - torch
    from index.search.code_quality import (  # noqa: PLC0415
        EvaluationSet,
        Search,
        exact_search,
        hamming_search,
        measure_code,
        standard_codes,
    )
    from service.cli.codes.data import collect, raw_pixels  # noqa: PLC0415

    settings = load_settings(home=home)
    console = Console(soft_wrap=True, highlight=False)
    with _index(home) as (index, fingerprint):
        sample = collect(index, classes or None, limit, seed)
        small = raw_pixels(index, sample.keys) if pixels else None
    chosen = np.sort(np.random.default_rng(seed).permutation(len(sample.keys))[:queries])
    collection = EvaluationSet(sample.vectors, sample.classes, chosen)
    exact = collection.exact()
    judged: list[CodeQuality] = []

    def add(name: str, size: int, search: Search, rows: NDArray[np.float32] | None = None) -> None:
        judged.append(measure_code(name, size, search, collection, exact, rows=rows))

    def train_and_add(name: str, count: int, rows: NDArray[np.float32], options: CodeOptions) -> None:
        with _bar(f"training {count} bits, {name}") as advance:
            net = train_codes(rows, options, advance).net
        add(name, count // 8, hamming_search(net.bits(rows), net.bits), rows)

    add("exact fc7", 2 * sample.vectors.shape[1], exact_search(sample.vectors))
    if small is not None:
        add("raw pixels", small.shape[1], exact_search(small), small)
    for count in counts:
        usual, without = (make(count, epochs=epochs, seed=seed) for make in (CodeOptions, CodeOptions.of_plain_form))
        encoder = CodeStore(settings.home).find(fingerprint, count)
        if encoder is not None:
            add("auto-encoder", count // 8, hamming_search(encoder.encode_bits(sample.vectors), encoder.encode_bits))
        else:
            console.print(f"There is no auto-encoder of {count} bits for this model: fc7 codes train --bits {count}")
        if plain:
            train_and_add("auto-encoder, plain", count, sample.vectors, without)
        for code in standard_codes(sample.vectors, count):
            add(code.name, count // 8, code.search)
        if small is not None:
            train_and_add("auto-encoder of pixels", count, small, usual)
            if plain:
                train_and_add("auto-encoder of pixels, plain", count, small, without)
    console.print(_table(judged))
    console.print(
        f"{len(sample.keys):,} images, {len(chosen):,} of them queries, "
        + ("no classes" if sample.classes is None else f"{len(set(sample.classes.tolist()))} classes")
    )
    if out is not None:
        out.write_text(json.dumps([asdict(each) for each in judged], indent=2) + "\n")
    if plot is not None:
        from service.cli.codes.plot import draw_codes  # noqa: PLC0415 - matplotlib

        draw_codes(judged, plot)


@contextmanager
def _index(home: Path | None) -> Iterator[tuple[LocalImageIndex, str]]:
    """Open the index of the active model to read."""
    settings = load_settings(home=home)
    check_local(settings, "binary codes are learned from an index in FC7_HOME", "Unset FC7_INDEX_URI for that.")
    artifact = ModelStore(settings.home).active_artifact(verify=False)
    with LocalImageIndex.open(settings.home, IndexOptions(artifact.fingerprint, artifact.id, read_only=True)) as index:
        yield index, artifact.fingerprint


@contextmanager
def _bar(title: str) -> Iterator[Callable[[int, int, float], None]]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.3f}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None, loss=1.0)
        yield lambda step, steps, loss: bar.update(task, completed=step, total=steps, loss=loss)


def _table(judged: list[CodeQuality]) -> Table:
    table = Table(
        "code", "bytes", "recall@10", "10 in 100", "class precision@6", "mAP", "queries/s", box=None, header_style="dim"
    )
    for each in judged:
        table.add_row(
            each.name,
            str(each.bytes),
            f"{each.recall:.3f}",
            f"{each.recall_wide:.3f}",
            "" if each.precision is None else f"{each.precision:.3f}",
            "" if each.mean_average_precision is None else f"{each.mean_average_precision:.3f}",
            f"{each.queries_per_second:,.0f}",
        )
    return table
