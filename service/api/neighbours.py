"""Classification of images by the labels of their nearest neighbors in the index.

Guarantees: images are embedded by the model whose vectors are searched; if the index switches to another model in the
meantime, they are embedded again with that model.
"""

from __future__ import annotations

from contextlib import AbstractAsyncContextManager
from functools import partial

import numpy as np
from fastapi import Request

from index.filters import parse_field
from index.labels import LABEL_FIELD, VOTERS
from index.voting import Votes, vote
from model_store.head.errors import UnlabelledError
from service.api.index_switch import with_searched_model
from service.api.novelty import novelty_of
from service.api.parameters import DEFAULT_CLASSES, MAX_COUNT, ClassifyQuery
from service.api.schemas.answers import ClassifyAnswer, ClassifyResult, ModelName
from service.errors import ParameterError
from service.inference.admission import Prediction
from service.inference.model_pool import Serving
from service.observability.request_log import notes_of
from service.state import State


def check_query(query: ClassifyQuery, state: State) -> None:
    """Raise ParameterError, FilterError or NotReadyError if the request cannot be answered, before its body arrives."""
    state.index()
    parse_field(query.field or LABEL_FIELD)
    if query.k is not None and not 1 <= query.k <= MAX_COUNT:
        raise ParameterError("k", query.k, f"a whole number from 1 to {MAX_COUNT}", MAX_COUNT)


async def classify_by_neighbours(
    request: Request, state: State, query: ClassifyQuery, images: list[bytes]
) -> ClassifyAnswer:
    """Return the classes with the most votes of each image. Raises UnlabelledError if no image has a label."""
    index, field = state.index(), query.field or LABEL_FIELD

    async def attempt(use: AbstractAsyncContextManager[Serving]) -> tuple[Serving, list[Prediction], list[Votes]]:
        async with use as serving:
            embedded = await state.embedder.embed(notes_of(request.scope), serving, images, views=query.views)
        artifact, predictions = serving.artifact, [image.prediction for image in embedded]
        vectors = np.stack([prediction.fc7 for prediction in predictions])
        count = query.neighbours or VOTERS
        find = partial(vote, index, vectors, count, field, known=artifact.labels, fingerprint=artifact.fingerprint)
        return serving, predictions, await state.in_index(find)

    serving, predictions, votes = await with_searched_model(state, query.model, attempt)
    if not votes[0].evidence:
        raise UnlabelledError(field, "no indexed image has a label there")
    artifact, k, root_path = serving.artifact, query.k or DEFAULT_CLASSES, state.settings.root_path
    novelty = novelty_of(state, serving, predictions, query.threshold)
    return ClassifyAnswer(
        model=ModelName.of(artifact),
        results=[
            ClassifyResult.of_votes(each, artifact.labels, k, found, root_path)
            for each, found in zip(votes, novelty, strict=True)
        ],
    )
