"""Predictions for tasks of Label Studio.

The network predicts Choices if each choice is one of its classes. Otherwise the labeled images of the index vote, so
that labels which Label Studio has sent are used immediately.

Guarantees: there is one prediction for each task, in order. The image of one task costs no other task its prediction,
unless no image can be used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from index.fields import field_name
from index.labels import VOTERS
from index.voting import vote
from model_store.artifact import Artifact
from model_store.errors import Fc7Error, ImageError
from service.api.label_studio.client import LabelStudioClient
from service.api.label_studio.config import Control
from service.api.label_studio.errors import TaskImageError
from service.api.label_studio.images import read_image
from service.inference.embed import Embedded
from service.observability.request_log import notes_of
from service.state import State

_AT_ONCE: Final = 8  # tasks whose images are in memory
Scores = Mapping[str, float]  # of the choices, by name


@dataclass(frozen=True, slots=True)
class _Task:
    """A task's scores for each control, or why it has none."""

    scores: Sequence[Scores]
    error: Fc7Error | None = None


@dataclass(frozen=True, slots=True)
class _Source:
    """The embedded images of some tasks, by the number of the task, and why others have none."""

    artifact: Artifact
    embedded: Mapping[int, Embedded]
    errors: Mapping[int, Fc7Error]


def by_network(control: Control, labels: Sequence[str]) -> bool:
    """Return whether each choice is a class of the network."""
    return set(control.names_of(labels).values()) == {choice.name for choice in control.choices}


def version_of(model: str, controls: Sequence[Control], labels: Sequence[str]) -> str:
    """Return the version that predictions have: the model's reference, such as solar:1 or solar:1+neighbours."""
    return model if all(by_network(control, labels) for control in controls) else f"{model}+neighbours"


async def predict(
    request: Request,
    state: State,
    controls: Sequence[Control],
    tasks: Sequence[Mapping[str, Any]],
    client: LabelStudioClient | None,
) -> tuple[str, list[dict[str, Any]]]:
    """Return the version of the model and a prediction for each task.

    Raises the error of the first task if no image can be used, and errors of the model and the index.
    """
    found: list[_Task] = []
    artifact = await state.artifact(None)
    for start in range(0, len(tasks), _AT_ONCE):
        found += await _predict_part(request, state, controls, tasks[start : start + _AT_ONCE], client)
    if found and all(task.error for task in found):
        raise found[0].error or AssertionError
    version = version_of(artifact.id, controls, artifact.labels)
    return version, [_prediction(task, controls, version) for task in found]


async def _predict_part(
    request: Request,
    state: State,
    controls: Sequence[Control],
    tasks: Sequence[Mapping[str, Any]],
    client: LabelStudioClient | None,
) -> list[_Task]:
    scores: dict[int, list[Scores]] = {number: [] for number in range(len(tasks))}
    errors: dict[int, Fc7Error] = {}
    sources: dict[str, _Source] = {}  # several controls can be about the same image
    for control in controls:
        if control.data not in sources:
            sources[control.data] = await _embed_source(request, state, control, tasks, client)
        source = sources[control.data]
        errors |= source.errors
        for number, result in (await _score(state, control, source)).items():
            scores[number].append(result)
    return [_Task(scores[number], errors.get(number)) for number in range(len(tasks))]


async def _embed_source(
    request: Request,
    state: State,
    control: Control,
    tasks: Sequence[Mapping[str, Any]],
    client: LabelStudioClient | None,
) -> _Source:
    """Read and embed the images that a control is about."""
    index = state.index()
    read = [state.in_index(read_image, task, control, index, client) for task in tasks]
    images: dict[int, bytes] = {}
    errors: dict[int, Fc7Error] = {}
    for number, image in enumerate(await asyncio.gather(*read, return_exceptions=True)):
        if isinstance(image, TaskImageError):
            errors[number] = image
        elif isinstance(image, BaseException):
            raise image
        else:
            images[number] = image.data
    embedded: dict[int, Embedded] = {}
    async with state.use(None) as serving:
        for number, result in (await _embed(request, state, images)).items():
            if isinstance(result, Fc7Error):
                errors[number] = TaskImageError(tasks[number].get("id"), str(result).rstrip("."))
            else:
                embedded[number] = result
    return _Source(serving.artifact, embedded, errors)


async def _score(state: State, control: Control, source: _Source) -> dict[int, Scores]:
    """Return the scores of each image."""
    labels, embedded, index = source.artifact.labels, source.embedded, state.index()
    names = control.names_of(labels)
    results = {number: _sums(names, labels, image.prediction.probabilities) for number, image in embedded.items()}
    if embedded and not by_network(control, labels) and index.searched.fingerprint == source.artifact.fingerprint:
        vectors = np.stack([image.prediction.fc7 for image in embedded.values()])
        field = field_name((control.field,))
        for number, votes in zip(embedded, await state.in_index(vote, index, vectors, VOTERS, field), strict=True):
            classes = [label for label, _ in votes.classes]
            known = control.names_of(classes)
            summed = _sums(known, classes, np.array([share for _, share in votes.classes], np.float32))
            results[number] = summed or results[number]
    return results


async def _embed(request: Request, state: State, images: Mapping[int, bytes]) -> dict[int, Embedded | Fc7Error]:
    async def one(data: bytes) -> Embedded | Fc7Error:
        async with asyncio.timeout(state.settings.deadline_s), state.use(None) as serving:
            try:
                return (await state.embedder.embed(notes_of(request.scope), serving, [data]))[0]
            except ImageError as error:
                return error

    return dict(zip(images, await asyncio.gather(*(one(data) for data in images.values())), strict=True))


def _sums(names: Mapping[str, str], labels: Sequence[str], shares: NDArray[np.float32]) -> Scores:
    """Return the sum of the shares of those labels that mean a choice, for each choice."""
    sums: dict[str, float] = {}
    for label, share in zip(labels, shares.tolist(), strict=True):
        if label in names:
            sums[names[label]] = sums.get(names[label], 0.0) + share
    return sums


def _prediction(task: _Task, controls: Sequence[Control], version: str) -> dict[str, Any]:
    if task.error is not None:
        return {"result": [], "score": 0.0, "model_version": version, "error": str(task.error)}
    result = []
    for control, scores in zip(controls, task.scores, strict=True):
        if scores:
            name, score = max(scores.items(), key=lambda item: item[1])
            result.append(
                {
                    "from_name": control.name,
                    "to_name": control.to_name,
                    "type": "choices",
                    "value": {"choices": [name]},
                    "score": round(score, 6),
                }
            )
    # Label Studio sorts tasks by the score of the prediction: the least certain of its results decides.
    score = min((float(str(each["score"])) for each in result), default=0.0)
    return {"result": result, "score": score, "model_version": version}
