"""`fc7 classify --out`: the classes of many images in a file; it can be resumed."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from model_store.image_files import kind_of_name
from service.cli import console
from service.cli.query.images import load_runner
from service.settings import Settings

if TYPE_CHECKING:
    from index.bulk.prediction_file import Options


def _check(sources: Sequence[str], out: Path, options: Options) -> None:
    """Raise BadParameter unless there is one source of images, and a format for the file."""
    from index.bulk.prediction_file import FORMATS  # noqa: PLC0415

    if len(sources) != 1:
        raise typer.BadParameter("give one folder, archive or URI with --out.", param_hint="SOURCE")
    if kind_of_name(sources[0]) and Path(sources[0]).is_file():
        raise typer.BadParameter("it is one image: give a folder or an archive, or no --out.", param_hint=sources[0])
    if out.suffix not in FORMATS or (options.embeddings and out.suffix == ".csv"):
        kinds = ".jsonl or .parquet, for embeddings" if options.embeddings else ".csv, .jsonl or .parquet"
        raise typer.BadParameter(f"the file must end with {kinds}.", param_hint="--out")


def classify_to_file(
    sources: Sequence[str], out: Path, options: Options, settings: Settings, model: str | None, *, as_json: bool
) -> None:
    """Classify all images of the only source, and write the results to `out`."""
    from index.bulk.pipeline import run_in_background  # noqa: PLC0415
    from index.bulk.predict import list_images, predict  # noqa: PLC0415
    from index.bulk.prediction_file import PredictionFile  # noqa: PLC0415
    from index.errors import FolderError  # noqa: PLC0415
    from model_store.decoder.decoder import Decoder  # noqa: PLC0415
    from model_store.image_files import Skipped  # noqa: PLC0415
    from model_store.novelty.reference import load_reference  # noqa: PLC0415
    from service.factory import decode_limits  # noqa: PLC0415

    _check(sources, out, options)
    source = sources[0] if "://" in sources[0] else str(Path(sources[0]).expanduser().absolute())
    others: list[Skipped] = []
    counts = {"images": 0, "failed": 0}
    started, workers = time.perf_counter(), settings.decode_threads or 2
    try:
        with (
            load_runner(settings, model) as (artifact, runner),
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
