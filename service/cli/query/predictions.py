"""`fc7 classify --out`: the classes of many images in a file; it can be resumed."""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from index.bulk.sources import is_uri, without_password
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
    source = sources[0] if is_uri(sources[0]) else str(Path(sources[0]).expanduser().absolute())
    others: list[Skipped] = []
    images_done = broken = 0
    started, workers = time.perf_counter(), settings.threads_to_decode
    try:
        with (
            load_runner(settings, model) as (artifact, runner),
            PredictionFile(out, without_password(source), artifact, options) as file,
            Decoder(decode_limits(settings), workers=workers) as decoder,
            console.ProgressBar("classifying", "images") as bar,
        ):
            if file.done:
                console.say(f"Resuming: {len(file.done):,} images are done already.")
                others += [Skipped(name, error) for name, error in file.done.items() if error is not None]
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
                images_done += len(rows)
                for row in rows:
                    if row.error is not None:
                        broken += 1
                        others.append(Skipped(row.name, row.error))
                bar.update(images_done, total)
            if not images_done and not file.done:
                raise FolderError(without_password(source), "has no images")
    except KeyboardInterrupt:
        console.exit_interrupted("Interrupted. Run the same command again to resume.")
    console.say_skipped(others)
    broken += sum(error is not None for error in file.done.values())
    document = {"model": artifact.id, "file": str(out), "seconds": round(time.perf_counter() - started, 3)}
    document |= {"images": images_done, "failed": broken}
    _summarize(document, len(file.done), without_password(sources[0]), as_json=as_json)


def _summarize(document: dict[str, Any], earlier: int, source: str, *, as_json: bool) -> None:
    """Print what was done. earlier: images of an interrupted run, which are not counted in `images`."""
    images, seconds = document["images"], document["seconds"]
    before = f", after {earlier:,} in an earlier run" if earlier else ""
    console.say(
        f"{images:,} images classified with {document['model']} in {seconds:.1f} s ({images / max(seconds, 0.001):.1f} "
        f"images/s){before}; {document['failed']:,} of them could not be read. {document['file']} has a row for each."
    )
    if as_json:
        console.print_json(document)
    else:
        build = f"fc7 index build {shlex.quote(source)}{' --ray local' if is_uri(source) else ''}"
        console.next_step(f"{build}, then fc7 search IMAGE finds similar images")
