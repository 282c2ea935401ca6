"""`GET /v1/index/map`: a position in the plane for each image, near the images that resemble it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

from fastapi import APIRouter, Query, Request, Response

from index.cursor import Listing, make_cursor, read_cursor
from index.filters import parse_where
from service.api.parameters import MapQuery
from service.api.routes.common import READ, WORK, StateDep, in_index_until_deadline, problems, revalidated
from service.api.schemas.map import MapAnswer, encode_map

_SHARE = 0.7  # of the deadline; the rest is for encoding what was found
router = APIRouter(tags=["index"], dependencies=[WORK])


@router.get(
    "/v1/index/map",
    operation_id="get_map",
    summary="Get the map of the index",
    dependencies=[READ],
    response_model=MapAnswer,
    responses=problems(401, 403, 409, 422, 503, 504)
    | {304: {"description": "The map still has the ETag in If-None-Match."}},
)
async def get_map(request: Request, query: Annotated[MapQuery, Query()], state: StateDep) -> Response:
    """Return the positions of the images, ordered by key, with a metadata field as their labels.

    The first map shows the two directions of largest variance. `POST /v1/jobs?kind=map` computes a better one with
    t-SNE. New images are placed near the images that resemble them, until the job runs again. The map belongs to the
    searched model; after a switch to another one it starts again.
    """
    index, where = state.index(), parse_where(query.where)
    identity = index.searched.fingerprint
    listing = Listing(where, "", "key", 0)
    after = None if query.cursor is None else read_cursor(query.cursor, identity, listing, _is_key)

    def work(stopped: Callable[[], bool]) -> bytes:
        page = state.maps.page(index, query.field, query.limit, after, where=where, stopped=stopped)
        return encode_map(page, query.field, make_cursor(identity, listing, page.last) if page.more else None)

    content = await in_index_until_deadline(request, state, work, share=_SHARE)
    return revalidated(request, content, "application/json")


def _is_key(last: object) -> bool:
    return isinstance(last, str) and last != ""
