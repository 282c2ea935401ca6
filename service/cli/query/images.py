"""Parts of the commands that answer questions about images: the model, the images, novelty, and the output."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray
from rich.markup import escape
from rich.table import Table

from model_store.artifact import Artifact
from model_store.errors import ImageError
from model_store.image_files import reason_of
from model_store.store import ModelStore
from service.cli import console
from service.cli.options import (
    find_version,
)
from service.settings import Settings

if TYPE_CHECKING:
    from model_store.runtime.runner import Runner


Images = Annotated[list[Path], typer.Argument(metavar="IMAGE", help="Image files.", show_default=False)]


@contextmanager
def load_runner(settings: Settings, model: str | None) -> Iterator[tuple[Artifact, Runner]]:
    """Load the named version, or the active one."""
    from model_store.runtime.runner import Runner  # noqa: PLC0415
    from service.factory import runner_options  # noqa: PLC0415

    runner = Runner(find_version(ModelStore(settings.home), model), runner_options(settings))
    try:
        yield runner.artifact, runner
    finally:
        runner.close()


def read_images(
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


def table_of(path: Path, model: str, *columns: str) -> Table:
    """Print the title of an image's results, and return a table for them."""
    console.show(f"[bold]{escape(str(path))}[/]  [dim]{model}[/]")
    return Table(*columns, box=None, header_style="dim", pad_edge=False)


def finish(document: dict[str, Any], skipped: list[tuple[Path, str]], following: str, *, as_json: bool) -> None:
    """Print the document with the skipped images as JSON, or the next step; exit with 1 if an image was skipped."""
    if as_json:
        entries = [{"path": str(path), "reason": reason} for path, reason in skipped]
        console.print_json(document | {"skipped": entries})
    else:
        console.next_step(following)
    if skipped:
        raise typer.Exit(1)


def novelty_of(
    artifact: Artifact, threshold: float
) -> Callable[[NDArray[np.float32], NDArray[np.uint8]], dict[str, Any] | None]:
    """Return a function of fc7, float32 [1,4096], and the center view, uint8 [1,224,224,3].

    It returns the novelty as JSON types, or None if the version has no reference.
    """
    from model_store.novelty.reference import load_reference  # noqa: PLC0415

    reference = load_reference(artifact)
    return lambda fc7, center: None if reference is None else reference.measure(fc7, center)[0].to_dict(threshold)


def show_novelty(novelty: dict[str, Any] | None) -> None:
    """Print whether an image is unknown; nothing if the version has no reference."""
    if novelty is not None:
        verdict = "[bold yellow]unknown[/]" if novelty["unknown"] else "known"
        console.show(
            f"{verdict}  [dim]more unusual than {novelty['percentile']:.1f} % of the validation images "
            f"(distance {novelty['distance']:.1f})[/]"
        )
