"""Webhooks of Label Studio: chosen labels become metadata of indexed images.

The image of a task is the indexed one that the task names (`fc7_key`), that got a label of the same task before, or
that has the same bytes. If there is none, the image is added to the index.

    {"label": "cat", "label_studio": {"project": 1, "task": 7, "annotation": 9, "choices": {"label": "cat"}}}

Guarantees: deleting an annotation removes only labels that it wrote and that were not changed since.
References: https://labelstud.io/guide/webhook_reference
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from fastapi import Request

from index.errors import FilterError
from index.filters import parse_where
from index.interface import ImageIndex
from service.api.adding import add_batch
from service.api.label_studio.client import LabelStudioClient
from service.api.label_studio.config import Control
from service.api.label_studio.images import TaskImage, indexed_key, read_image
from service.errors import BodyMalformedError
from service.observability.request_log import notes_of
from service.state import State

CREATED: Final = ("ANNOTATION_CREATED", "ANNOTATION_UPDATED", "ANNOTATIONS_CREATED")
DELETED: Final = ("ANNOTATION_DELETED", "ANNOTATIONS_DELETED")
_FIELD: Final = "label_studio"
_SAME_BYTES: Final = 10  # nearest images whose bytes are compared
_PAGE: Final = 1000


async def annotated(
    request: Request,
    state: State,
    body: Mapping[str, Any],
    controls: Sequence[Control],
    client: LabelStudioClient | None,
) -> list[str]:
    """Store the labels of the annotations of an event; return the keys of the images that have them now."""
    annotations, tasks = _list_of(body, "annotation"), _list_of(body, "task")
    if len(annotations) != len(tasks):
        raise BodyMalformedError(f"The event has {len(annotations)} annotations, but {len(tasks)} tasks.")
    keys = []
    for annotation, task in zip(annotations, tasks, strict=True):
        if annotation.get("was_cancelled"):
            continue  # the task was skipped
        chosen = {control.field: _chosen(annotation, control) for control in controls}
        about = {
            "project": _id_of(body.get("project")),
            "task": _id_of(task),
            "annotation": _id_of(annotation),
            "choices": {field: value for field, value in chosen.items() if value is not None},
        }
        keys.append(await _store(request, state, task, controls[0], chosen=chosen, about=about, client=client))
    return keys


async def removed(state: State, body: Mapping[str, Any]) -> list[str]:
    """Remove the labels of deleted annotations; return the keys of the images that had them."""
    index = state.index()
    keys: list[str] = []
    for annotation in _list_of(body, "annotations") or _list_of(body, "annotation"):
        for key in await state.in_index(_find, index, {"annotation": _id_of(annotation)}, _PAGE):
            await state.in_index(index.change_metadata, key, _without_labels)
            keys.append(key)
    return keys


async def _store(
    request: Request,
    state: State,
    task: Mapping[str, Any],
    control: Control,
    *,
    chosen: Mapping[str, object],
    about: Mapping[str, Any],
    client: LabelStudioClient | None,
) -> str:
    """Store the labels of a task's annotation; return the key of the image."""
    index = state.index()

    def change(old: dict[str, Any]) -> dict[str, Any]:
        kept = {field: value for field, value in _without_labels(old).items() if field not in chosen}
        new = {field: value for field, value in chosen.items() if value is not None}
        return {**kept, **new, _FIELD: about}

    data = task.get("data")
    key = await state.in_index(indexed_key, data, index) if isinstance(data, Mapping) else None
    if key is None:
        same = {name: about[name] for name in ("project", "task")}
        key = next(iter(await state.in_index(_find, index, same, 1)), None)
    if key is None:
        image = await state.in_index(read_image, task, control, index, client)
        key = await _same_bytes(request, state, image)
        if key is None:
            key = image.key if not await state.in_index(index.contains, image.key) else image.sha256
            await add_batch(request, state, [image.data], [key], [change({})])
            return key
    await state.in_index(index.change_metadata, key, change)
    return key


async def _same_bytes(request: Request, state: State, image: TaskImage) -> str | None:
    """Return the key of the indexed image with these bytes, or None."""
    index, digest = state.index(), image.sha256
    async with state.use_for(index.searched.fingerprint) as serving:
        [embedded] = await state.embedder.embed(notes_of(request.scope), serving, [image.data])

    def find() -> str | None:
        [nearest] = index.search(np.stack([embedded.prediction.fc7]), _SAME_BYTES)
        return next(
            (near.key for near in nearest if index.contains(near.key) and index.get(near.key).sha256 == digest), None
        )

    return await state.in_index(find)


def _find(index: ImageIndex, about: Mapping[str, Any], limit: int) -> list[str]:
    """Return the keys of images with these numbers of Label Studio."""
    if any(value is None for value in about.values()):
        return []
    try:
        where = parse_where([f"{_FIELD}.{name}={value}" for name, value in about.items()])
        return [record.key for record in index.list(limit, where=where).images]
    except FilterError:  # no image was ever labeled with Label Studio
        return []


def _without_labels(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Return the metadata without the labels that Label Studio wrote, unless they were changed since."""
    about = metadata.get(_FIELD)
    written = about.get("choices") if isinstance(about, Mapping) else None
    written = written if isinstance(written, Mapping) else {}
    return {
        field: value
        for field, value in metadata.items()
        if field != _FIELD and not (field in written and written[field] == value)
    }


def _chosen(annotation: Mapping[str, Any], control: Control) -> object:
    """Return the choice of an annotation: a text, a list of several, or None."""
    results = annotation.get("result")
    for item in results if isinstance(results, list) else []:
        value = item.get("value") if isinstance(item, Mapping) and item.get("from_name") == control.name else None
        names = value.get("choices") if isinstance(value, Mapping) else None
        texts = [name for name in names if isinstance(name, str)] if isinstance(names, list) else []
        if texts:
            return texts[0] if len(texts) == 1 else texts
    return None


def _id_of(value: object) -> int | None:
    """Return the number of a project, task or annotation, which is an object or only its number."""
    number = value.get("id") if isinstance(value, Mapping) else value
    return number if isinstance(number, int) and not isinstance(number, bool) else None


def _list_of(body: Mapping[str, Any], name: str) -> list[Mapping[str, Any]]:
    """Return the objects under a name: one, or a list of them. A number stands for an object with this id."""
    value = body.get(name)
    items = value if isinstance(value, list) else [] if value is None else [value]
    found = [{"id": item} if isinstance(item, int) else item for item in items]
    if not all(isinstance(item, Mapping) for item in found):
        raise BodyMalformedError(f"{name} must be an object, or a list of objects.")
    return found
