"""`GET /v1/images/suggestions`: the unlabeled images whose labels would teach most.

The path takes the place of `GET /v1/images/{key}` for an image with the key `suggestions`. All its other paths and
methods work. Its record is at `/v1/images/%73uggestions` and in the listing `/v1/images?prefix=suggestions`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request

from index.filters import parse_where
from index.suggestions import suggest
from service.api.parameters import SuggestionsQuery
from service.api.routes.common import READ, WORK, StateDep, in_index_until_deadline, problems
from service.api.routes.images import KeyRoute
from service.api.schemas.suggestions import SuggestionsAnswer

_SHARE = 0.8  # of the deadline; the rest is for the answer
router = APIRouter(tags=["images"], dependencies=[WORK], route_class=KeyRoute)


@router.get(
    "/v1/images/suggestions",
    operation_id="suggest_images",
    summary="Suggest images to label",
    dependencies=[READ],
    responses=problems(401, 403, 409, 422, 503, 504),
)
async def suggest_images(
    request: Request, query: Annotated[SuggestionsQuery, Query()], state: StateDep
) -> SuggestionsAnswer:
    """Return images without a value in a metadata field, those first whose labels would teach most.

    These are images whose labeled neighbors disagree, and images that are unlike all labeled ones. Each suggestion
    counts the previous ones as labeled, so the list does not repeat one scene. Label some of them, and ask again. In a
    large index, random samples of 4,096 unlabeled and 4,096 labeled images are compared; `note` says so.
    """
    index, where = state.index(), parse_where(query.where)
    model = index.searched.model

    def work(stopped: Callable[[], bool]) -> SuggestionsAnswer:
        found = suggest(index, query.field, query.limit, where=where, stopped=stopped)
        return SuggestionsAnswer.of(model, query.field, found, state.settings.root_path)

    return await in_index_until_deadline(request, state, work, share=_SHARE)
