"""Classification of images by the labels of their nearest neighbors in the index.

Guarantees: images are embedded by the model whose vectors are searched; if the index switches to another model in the
meantime, they are embedded again with that model.
"""

from __future__ import annotations

from functools import partial

import numpy as np
from fastapi import Request

from index.errors import IndexModelError, IndexSwitchedError
from index.filters import parse_field
from index.labels import LABEL_FIELD
from index.voting import vote
from model_store.head.errors import UnlabelledError
from service.api.novelty import novelty_of
from service.api.parameters import MAX_COUNT, ClassifyQuery
from service.api.schemas.answers import ClassifyAnswer, ClassifyResult, ModelName
from service.errors import ModelNotLoadedError, ParameterError
from service.observability.request_log import notes_of
from service.state import State

_NEIGHBOURS = 10
_DEFAULT_K = 5


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
    while True:
        searched = index.searched.fingerprint
        try:
            async with state.use_for(searched) if query.model is None else state.use(query.model) as serving:
                embedded = await state.embedder.embed(notes_of(request.scope), serving, images, views=query.views)
            artifact = serving.artifact
            predictions = [image.prediction for image in embedded]
            vectors = np.stack([prediction.fc7 for prediction in predictions])
            count = query.neighbours or _NEIGHBOURS
            find = partial(vote, index, vectors, count, field, known=artifact.labels, fingerprint=artifact.fingerprint)
            votes = await state.in_index(find)
            break
        except (IndexModelError, IndexSwitchedError, ModelNotLoadedError):
            if query.model is not None or index.searched.fingerprint == searched:
                raise
    if not votes[0].evidence:
        raise UnlabelledError(field, "no indexed image has a label there")
    k, root_path = query.k or _DEFAULT_K, state.settings.root_path
    novelty = novelty_of(state, serving, predictions, query.threshold)
    return ClassifyAnswer(
        model=ModelName.of(artifact),
        results=[
            ClassifyResult.of_votes(each, artifact.labels, k, found, root_path)
            for each, found in zip(votes, novelty, strict=True)
        ],
    )
