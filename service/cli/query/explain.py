"""`fc7 explain`: a heat map of what in an image speaks for a class, or makes it similar to an indexed image.

Out of scope: several images and ten views (a heat map belongs to one crop).
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.durable import atomic_file
from model_store.image import views
from service.cli import console
from service.cli.options import AsJson, Home, ModelOption, find_version
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model_store.runtime.explainer import Explainer, Target


def explain(
    image: Annotated[Path, typer.Argument(metavar="IMAGE", help="Image file.", show_default=False)],
    *,
    out: Annotated[
        Path,
        typer.Option(metavar="FILE.png", help="Picture to write. An existing file is replaced.", show_default=False),
    ],
    class_name: Annotated[
        str | None,
        typer.Option("--class", metavar="CLASS", help="Class to explain.", show_default="the most probable class"),
    ] = None,
    near: Annotated[
        str | None,
        typer.Option(
            metavar="KEY",
            help="Explain what makes the image similar to this indexed image, instead of a class.",
            show_default=False,
        ),
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="Draw only the cells, not over the image.")] = False,
    model: ModelOption = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Draw which parts of an image speak for a class, or make it similar to an indexed image."""
    from service.inference.explaining import is_same_picture  # noqa: PLC0415
    from service.inference.heat_map import to_grid, to_png  # noqa: PLC0415

    if out.suffix.lower() != ".png":
        raise typer.BadParameter("the file must end with .png.", param_hint="--out")
    if class_name is not None and near is not None:
        raise typer.BadParameter("give either --class or --near.", param_hint="--near")
    settings = load_settings(home=home)
    explainer = _load(settings, model)
    artifact = explainer.artifact
    pixels = _read(image, settings)
    target = _target(settings, artifact, class_name, near)
    found = explainer.run(views(pixels), [target])
    heat, fc7, index = found.heat[0], found.fc7[0], int(found.explained[0])
    document: dict[str, Any] = {"model": artifact.id, "image": str(image), "file": str(out)}
    if target.near is None:
        label, probability = artifact.labels[index], float(found.probabilities[0, index])
        document |= {"class": label, "index": index, "probability": probability}
        subject = f"{label} ({probability:.1%})"
    else:
        distance = float(np.linalg.norm(fc7 - target.near))
        heat = np.zeros_like(heat) if is_same_picture(fc7, target.near) else heat
        document |= {"near": near, "distance": distance}
        subject = f"similarity to {near} (distance {distance:.2f})"
    png = to_png(heat, None if grid else views(pixels)[0], f"{artifact.id}: {subject}")
    with atomic_file(out) as file:
        file.write(png)
    if as_json:
        console.print_json(document | {"grid": to_grid(heat)})
        return
    console.show(f"{artifact.id}: {subject}. The heat map is in {out}.", markup=False)
    if not heat.any():
        console.say("No part of the image speaks for it, so no part is hot.")


def _load(settings: Settings, model: str | None) -> Explainer:
    from model_store.runtime.explainer import Explainer  # noqa: PLC0415
    from service.factory import runner_options, store_of  # noqa: PLC0415

    artifact = find_version(store_of(settings), model)
    options = runner_options(settings)
    return Explainer(artifact if options.precision is None else artifact.at(options.precision), options)


def _read(image: Path, settings: Settings) -> NDArray[np.uint8]:
    """Return the prepared image, uint8 [256, 256, 3]. Raises ImageError, OSError."""
    from model_store.decoder.decoder import Decoder  # noqa: PLC0415
    from service.factory import decode_limits  # noqa: PLC0415

    with Decoder(decode_limits(settings)) as decoder:
        return decoder.prepare(image.read_bytes())


def _target(settings: Settings, artifact: Artifact, class_name: str | None, near: str | None) -> Target:
    """Return what to explain. Raises ClassNotFoundError, VectorNotFoundError and the errors of the index."""
    from index.records import IndexOptions  # noqa: PLC0415
    from model_store.runtime.explainer import Target  # noqa: PLC0415
    from service.factory import open_index_of  # noqa: PLC0415
    from service.inference.errors import VectorNotFoundError  # noqa: PLC0415
    from service.inference.explaining import find_class  # noqa: PLC0415

    if near is None:
        return Target(None if class_name is None else find_class(artifact.labels, class_name, artifact.id))
    options = IndexOptions(artifact.fingerprint, artifact.embedder, read_only=True, fast_from=1)
    with open_index_of(settings, options) as index:
        vectors = index.vectors([near], fingerprint=artifact.fingerprint)
    if near not in vectors:
        raise VectorNotFoundError(near, artifact.embedder)
    return Target(near=vectors[near].astype(np.float32))
