"""`fc7 classify --by neighbours`: a vote of the nearest labeled images of the index, which is opened read-only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from model_store.image import views
from service.cli import console
from service.cli.query.images import finish, load_runner, novelty_of, read_images, show_novelty, table_of
from service.settings import Settings

if TYPE_CHECKING:
    pass


@dataclass(frozen=True)
class Voting:
    """How neighbors classify. neighbours: how many vote. field: of their labels."""

    top: int
    view_count: int
    threshold: float
    neighbours: int
    field: str


def classify_by_neighbours(
    images: Sequence[str], how: Voting, *, settings: Settings, model: str | None, as_json: bool
) -> None:
    """Print the classes with the most votes of the nearest labeled images, and how many of these agree."""
    from index.records import IndexOptions  # noqa: PLC0415
    from index.voting import vote  # noqa: PLC0415
    from model_store.head.errors import UnlabelledError  # noqa: PLC0415
    from model_store.runtime.runner import average_views  # noqa: PLC0415
    from service.factory import open_index_of  # noqa: PLC0415

    found: list[dict[str, Any]] = []
    skipped: list[tuple[Path, str]] = []
    with (
        load_runner(settings, model) as (artifact, runner),
        open_index_of(settings, IndexOptions(artifact.fingerprint, artifact.embedder, read_only=True)) as index,
    ):
        measure = novelty_of(artifact, how.threshold)
        number_of = {label: number for number, label in enumerate(artifact.labels)}
        for path, pixels in read_images([Path(image) for image in images], settings, skipped):
            vectors = average_views(runner.run(views(pixels, how.view_count)).fc7, how.view_count)
            [votes] = vote(index, vectors, how.neighbours, how.field, known=artifact.labels)
            if not votes.evidence:
                raise UnlabelledError(how.field, "no indexed image has a label there")
            predictions = [
                {"index": number_of.get(label), "label": label, "probability": share}
                for label, share in votes.classes[: how.top]
            ]
            evidence = [
                {
                    "key": each.neighbour.key,
                    "label": each.label,
                    "distance": each.neighbour.distance,
                    "weight": each.weight,
                }
                for each in votes.evidence
            ]
            novelty = measure(vectors, views(pixels))
            found.append({"image": str(path), "predictions": predictions, "novelty": novelty, "evidence": evidence})
            if not as_json:
                table = table_of(path, artifact.id, "class", "votes", "nearest")
                for label, share in votes.classes[: how.top]:
                    nearest = next(each.neighbour for each in votes.evidence if each.label == label)
                    table.add_row(escape(label), f"{share:7.2%}", escape(f"{nearest.key} ({nearest.distance:.2f})"))
                console.show(table)
                show_novelty(novelty)
    document = {"model": artifact.id, "results": found}
    finish(document, skipped, "fc7 head fit teaches the network these classes", as_json=as_json)
