"""`fc7 classify` and `fc7 search`: results on the command line, from the local home and without a server.

Guarantees: an image that cannot be read is reported and skipped; the others are processed, and the exit code is 1.
The index is opened read-only, also while a server is running.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
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
from model_store.image_files import kind_of_name, reason_of
from model_store.store import ModelStore
from service.cli import console
from service.cli.options import AsJson, Home, ModelOption, Threshold, Views, Where, find_version
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model_store.runtime.runner import Runner
    from service.cli.predictions import Options

_BAR = 24  # characters

Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.", show_default=False)]


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
    threshold: Threshold = None,
    model: ModelOption = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Print the most probable classes of each image, or write those of many images to a file; it can be resumed."""
    settings = load_settings(home=home)
    if threshold is None:
        threshold = settings.novelty_threshold
    if out is not None:
        from service.cli.predictions import Options  # noqa: PLC0415

        options = Options(top, embeddings, view_count, threshold)
        _classify_to_file(images, out, options, settings, model, as_json=as_json)
        return
    if embeddings:
        raise typer.BadParameter("it requires --out.", param_hint="--embeddings")
    if folder := next((image for image in images if "://" in image or Path(image).is_dir()), None):
        raise typer.BadParameter(f"to classify all images of {folder}, add --out FILE.", param_hint="--out")
    found: list[dict[str, Any]] = []
    skipped: list[tuple[Path, str]] = []
    with _load_runner(settings, model) as (artifact, runner):
        answer = _classifier(runner, top, view_count, threshold)
        for path, pixels in _read_images([Path(image) for image in images], settings, skipped):
            result = answer(pixels)
            found.append({"image": str(path), **result})
            if not as_json:
                table = _table(path, artifact.id, "class", "probability")
                for entry in result["predictions"]:
                    bar = "█" * round(entry["probability"] * _BAR)
                    table.add_row(escape(entry["label"]), f"{entry['probability']:7.2%} {bar}")
                console.show(table)
                _show_novelty(result["novelty"])
    _finish({"model": artifact.id, "results": found}, skipped, "fc7 search IMAGE finds similar images", as_json=as_json)


def _classifier(
    runner: Runner, top: int, view_count: int, threshold: float
) -> Callable[[NDArray[np.uint8]], dict[str, Any]]:
    """Return a function that classifies a prepared image, uint8 [256, 256, 3]. Its results are JSON types."""
    from model_store.runtime.runner import average_views, top_k  # noqa: PLC0415

    labels, measure = runner.artifact.labels, _novelty_of(runner.artifact, threshold)

    def classify_one(pixels: NDArray[np.uint8]) -> dict[str, Any]:
        outputs = runner.run(views(pixels, view_count))
        probabilities, fc7 = (average_views(values, view_count) for values in outputs)
        indices, values = top_k(probabilities, min(top, runner.classes))
        predictions = [
            {"index": index, "label": labels[index], "probability": value}
            for index, value in zip(indices[0].tolist(), values[0].tolist(), strict=True)
        ]
        return {"predictions": predictions, "novelty": measure(fc7)}

    return classify_one


def _novelty_of(artifact: Artifact, threshold: float) -> Callable[[NDArray[np.float32]], dict[str, Any] | None]:
    """Return a function of fc7, float32 [1,4096]: the novelty as JSON types, None if the version has no reference."""
    from model_store.novelty.reference import load_reference  # noqa: PLC0415

    reference = load_reference(artifact)
    return lambda fc7: None if reference is None else reference.measure(fc7)[0].to_dict(threshold)


def _show_novelty(novelty: dict[str, Any] | None) -> None:
    if novelty is not None:
        verdict = "[bold yellow]unknown[/]" if novelty["unknown"] else "known"
        console.show(
            f"{verdict}  [dim]farther from the training images than {novelty['percentile']:.1f} % of the validation "
            f"images (distance {novelty['distance']:.1f})[/]"
        )


def _classify_to_file(
    sources: Sequence[str], out: Path, options: Options, settings: Settings, model: str | None, *, as_json: bool
) -> None:
    """Classify all images of the only source, and write the results to `out`."""
    from index.bulk.pipeline import run_in_background  # noqa: PLC0415
    from index.bulk.predict import list_images, predict  # noqa: PLC0415
    from index.errors import FolderError  # noqa: PLC0415
    from model_store.decoder.decoder import Decoder  # noqa: PLC0415
    from model_store.image_files import Skipped  # noqa: PLC0415
    from model_store.novelty.reference import load_reference  # noqa: PLC0415
    from service.cli.predictions import FORMATS, PredictionFile  # noqa: PLC0415
    from service.factory import decode_limits  # noqa: PLC0415

    if len(sources) != 1:
        raise typer.BadParameter("give one folder, archive or URI with --out.", param_hint="SOURCE")
    if kind_of_name(sources[0]) and Path(sources[0]).is_file():
        raise typer.BadParameter("it is one image: give a folder or an archive, or no --out.", param_hint=sources[0])
    if out.suffix not in FORMATS or (options.embeddings and out.suffix == ".csv"):
        kinds = ".jsonl or .parquet, for embeddings" if options.embeddings else ".csv, .jsonl or .parquet"
        raise typer.BadParameter(f"the file must end with {kinds}.", param_hint="--out")
    source = sources[0] if "://" in sources[0] else str(Path(sources[0]).expanduser().absolute())
    others: list[Skipped] = []
    counts = {"images": 0, "failed": 0}
    started, workers = time.perf_counter(), settings.decode_threads or 2
    try:
        with (
            _load_runner(settings, model) as (artifact, runner),
            PredictionFile(out, source, artifact, options) as file,
            Decoder(decode_limits(settings), workers=workers) as decoder,
            console.ProgressBar("classifying", "images") as bar,
        ):
            if file.done:
                console.say(f"Resuming: {len(file.done):,} images are done already.")
            images = list_images(source, others.append)
            is_archive = Path(source).is_file()
            listed = images if is_archive else list(images)  # the bytes of an archive are not kept in memory
            total = None if isinstance(listed, Iterator) else len(listed) - len(file.done)
            waiting = (image for image in listed if image.name not in file.done)
            predicted = predict(
                waiting,
                runner,
                decoder,
                workers=workers,
                view_count=options.views,
                reference=load_reference(artifact),
            )
            for rows in run_in_background(file.add, predicted):
                counts["images"] += len(rows)
                for row in rows:
                    if row.error is not None:
                        counts["failed"] += 1
                        others.append(Skipped(row.name, row.error))
                bar.update(counts["images"], total)
            if not counts["images"] and not file.done:
                raise FolderError(source, "has no images")
    except KeyboardInterrupt:
        console.exit_interrupted("Interrupted. Run the same command again to resume.")
    seconds = time.perf_counter() - started
    console.say_skipped(others)
    console.say(
        f"{counts['images']:,} images classified with {artifact.id} in {seconds:.1f} s "
        f"({counts['images'] / seconds:.1f} images/s); {counts['failed']:,} of them could not be read. "
        f"{out} has a row for each."
    )
    if as_json:
        console.print_json({"model": artifact.id, "file": str(out), "seconds": round(seconds, 3), **counts})


def search(
    images: Images,
    *,
    k: Annotated[int, typer.Option("-k", min=1, help="Number of neighbors per image.")] = 6,
    mode: Annotated[
        Literal["exact", "fast", "codes"] | None,
        typer.Option(help="How to search.", show_default="fast if its codes are trained, else exact"),
    ] = None,
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
        _load_runner(settings, model) as (artifact, runner),
        open_index_of(
            settings, IndexOptions(artifact.fingerprint, artifact.embedder, read_only=True, fast_from=1)
        ) as index,
    ):
        used, measure = index.mode(mode), _novelty_of(artifact, threshold)
        for path, pixels in _read_images(images, settings, skipped):
            fc7 = runner.run(views(pixels)).fc7
            [neighbours] = index.search(fc7, k, where=filters, mode=used)
            novelty = measure(fc7)
            entries = [{"key": near.key, "distance": near.distance, "metadata": near.metadata} for near in neighbours]
            found.append({"image": str(path), "neighbours": entries, "novelty": novelty})
            if not as_json:
                table = _table(path, artifact.id, "nearest", "distance", "metadata")
                for near in neighbours:
                    metadata = json.dumps(near.metadata, ensure_ascii=False) if near.metadata else ""
                    table.add_row(escape(near.key), f"{near.distance:.2f}", escape(metadata))
                console.show(table)
                _show_novelty(novelty)
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
                reason = reason_of(error)
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
