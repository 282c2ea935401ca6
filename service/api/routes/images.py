"""`/v1/images`: add, get, list, update and delete indexed images; their thumbnails; images similar to an indexed one.

A key may contain slashes, sent raw or as %2F. Only a raw slash separates a key from `/thumbnail` and `/similar`. To
address a key that itself ends in one of these, encode the slashes of the key.

Guarantees: after a 2xx response, the change is on disk; an image whose key already has the same bytes is not embedded
again.
Out of scope: fetching URLs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Annotated, Any
from urllib.parse import unquote

from fastapi import APIRouter, Path, Query, Request, Response, status
from fastapi.routing import APIRoute
from starlette.routing import Match
from starlette.types import Scope as AsgiScope

from index.cursor import Listing
from index.errors import MetadataError
from index.filters import parse_where
from index.records import AddOutcome, Page, check_key
from service.api.adding import add_batch
from service.api.json_body import PATCH_TYPES, merge_patch, receive_changes, receive_patch
from service.api.parameters import ListQuery, PatchQuery, SearchQuery, WhereQuery
from service.api.routes.common import (
    READ,
    WITH_BODY,
    WORK,
    WRITE,
    StateDep,
    image_body,
    in_index_until_deadline,
    in_index_until_gone,
    problems,
    revalidated,
    within_limits,
)
from service.api.schemas.answers import ModelName, SearchAnswer, SearchResult
from service.api.schemas.bodies import ONE_IMAGE
from service.api.schemas.images import (
    AddAnswer,
    AddResult,
    DeletedAnswer,
    ImageInfo,
    ImagePage,
    KeysPatch,
    MetadataChanged,
    MetadataPatch,
)
from service.api.schemas.links import image_path
from service.api.upload import receive
from service.errors import BodyMalformedError, DrainingError, ParameterError
from service.inference.errors import NoReferenceError
from service.state import State

_SHARE = 0.8  # of the deadline, for measuring; the rest is for the answer


class KeyRoute(APIRoute):
    """A route that matches the raw path, so that a slash sent as %2F belongs to the key."""

    def matches(self, scope: AsgiScope) -> tuple[Match, AsgiScope]:
        """Match the raw path and decode the key."""
        raw = scope.get("raw_path")
        match, child = super().matches({**scope, "path": raw.decode("ascii")} if raw else scope)
        parameters = child.get("path_params", {})
        if raw and "key" in parameters:
            # Invalid UTF-8 becomes lone surrogates, which the index rejects. Replacement characters could make two
            # different keys equal.
            child["path_params"] = {**parameters, "key": unquote(parameters["key"], errors="surrogateescape")}
        return match, child


router = APIRouter(tags=["images"], dependencies=[WORK], route_class=KeyRoute)

_METADATA_ONE = "A JSON object to store with the image."
_METADATA_MANY = "A JSON object that maps each key (file name) to the JSON object to store with that image."

_PATCH_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": MetadataPatch.model_json_schema()} for kind in PATCH_TYPES},
    }
}

_KEYS_BODY = {
    "requestBody": {
        "required": True,
        "content": {kind: {"schema": KeysPatch.model_json_schema()} for kind in PATCH_TYPES},
    }
}

Key = Annotated[str, Path(description="The key of the image, 1 to 200 characters.")]


@router.get(
    "/v1/images",
    operation_id="list_images",
    summary="List indexed images",
    dependencies=[READ],
    responses=problems(401, 403, 409, 422, 503, 504),
)
async def list_images(request: Request, query: Annotated[ListQuery, Query()], state: StateDep) -> ImagePage:
    """Return a page of images, by default in the order in which they were first added.

    A `next_cursor` continues the listing with the same filter, prefix and order. The first listing by novelty measures
    all images, about 4 seconds for 100,000; their distances are kept in memory. If that takes longer than the deadline,
    the answer is 503, and a repeated request continues.
    """
    index, where = state.index(), parse_where(query.where)
    if query.seed is not None and query.order != "random":
        raise ParameterError("seed", query.seed, "no seed, because it is only used with order=random")
    match query.order:
        case "novelty" | "-novelty" as order:
            page = await _by_novelty(request, query, Listing(where, query.prefix, order, 0), state)
        case order:
            list_page = partial(index.list, where=where, prefix=query.prefix, order=order, seed=query.seed or 0)
            page = await state.in_index(list_page, query.limit, query.cursor)
    return ImagePage(
        images=[ImageInfo.of(record, state.settings.root_path) for record in page.images],
        next_cursor=page.next_cursor,
    )


@router.post(
    "/v1/images",
    operation_id="add_images",
    summary="Add images with their file names as keys",
    dependencies=[WRITE],
    responses=problems(*WITH_BODY, 409, 507)
    | {201: {"model": AddAnswer, "description": "At least one image was added."}},
    openapi_extra=image_body(metadata=_METADATA_MANY),
)
async def add_images(request: Request, response: Response, state: StateDep) -> AddAnswer:
    """Add all images, or none of them if one is invalid. The key of an image without a file name is its SHA-256."""
    state.index()
    async with receive(request) as body:
        metadata = body.metadata or {}
        _check_names([name for name in body.names if name is not None], metadata)
        work = add_batch(request, state, body.images, body.names, [metadata.get(name or "") for name in body.names])
        results = await within_limits(request, state, work)
    if any(result.outcome is AddOutcome.ADDED for result in results):
        response.status_code = status.HTTP_201_CREATED
    return AddAnswer(model=_model_of_index(state), results=results)


@router.get(
    "/v1/images/{key:path}/thumbnail",
    operation_id="get_thumbnail",
    summary="Get the thumbnail of an indexed image",
    dependencies=[READ],
    response_class=Response,
    responses=problems(401, 403, 404, 409, 422, 503)
    | {
        200: {"content": {"image/jpeg": {}}, "description": "A JPEG image."},
        304: {"description": "The thumbnail still has the ETag in If-None-Match."},
    },
)
async def get_thumbnail(request: Request, key: Key, state: StateDep) -> Response:
    """Return the stored 256x256 thumbnail."""
    picture = await state.in_index(state.index().picture, key)
    return revalidated(request, picture, "image/jpeg")


@router.get(
    "/v1/images/{key:path}/similar",
    operation_id="similar_images",
    summary="Find images similar to an indexed image",
    response_model_exclude_unset=True,
    dependencies=[READ],
    responses=problems(401, 403, 404, 409, 422, 503, 504),
)
async def similar_images(
    request: Request, key: Key, query: Annotated[SearchQuery, Query()], state: StateDep
) -> SearchAnswer:
    """Search with the stored vector of an indexed image. The image itself is not part of the result."""
    index, where = state.index(), parse_where(query.where)
    find = partial(index.similar, where=where, mode=query.mode, max_distance=query.max_distance)
    work = state.in_index(find, key, query.k)
    model = _model_of_index(state)
    neighbours = await within_limits(request, state, work)
    result = SearchResult.of(neighbours, state.settings.root_path)
    return SearchAnswer(model=model, mode=neighbours.mode, results=[result])


@router.get(
    "/v1/images/{key:path}",
    operation_id="get_image",
    summary="Get an indexed image",
    dependencies=[READ],
    responses=problems(401, 403, 404, 409, 422, 503),
)
async def get_image(key: Key, state: StateDep) -> ImageInfo:
    """Return the size, the SHA-256, the times and the metadata of an image."""
    return ImageInfo.of(await state.in_index(state.index().get, key), state.settings.root_path)


@router.put(
    "/v1/images/{key:path}",
    operation_id="put_image",
    summary="Add or replace one image",
    dependencies=[WRITE],
    responses=problems(*WITH_BODY, 409, 507) | {201: {"model": AddResult, "description": "The key is new."}},
    openapi_extra=image_body(metadata=_METADATA_ONE, many=False, json=ONE_IMAGE),
)
async def put_image(request: Request, response: Response, key: Key, state: StateDep) -> AddResult:
    """Send the image as the body, or as a multipart part named `file`, optionally with a part named `metadata`.

    As JSON: {"image": "data:image/png;base64,...", "metadata": {...}}.
    """
    state.index()
    check_key(key)
    async with receive(request, metadata=True) as body:
        if len(body.images) != 1:
            raise BodyMalformedError(f"This path accepts exactly one image, but {len(body.images)} were sent.")
        work = add_batch(request, state, body.images, [key], [body.metadata])
        [result] = await within_limits(request, state, work)
    if result.outcome is AddOutcome.ADDED:
        response.status_code = status.HTTP_201_CREATED
        response.headers["Location"] = image_path(key, state.settings.root_path)
    return result


@router.patch(
    "/v1/images",
    operation_id="patch_images",
    summary="Update the metadata of several images",
    dependencies=[WRITE],
    responses=problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 503, 507),
    openapi_extra=_KEYS_BODY,
)
async def patch_images(request: Request, query: Annotated[PatchQuery, Query()], state: StateDep) -> MetadataChanged:
    """Apply one JSON merge patch to up to 1,000 images by key, or to all that match `where`.

    For example, {"keys": ["a.jpg", "b.jpg"], "metadata": {"label": "cat"}}. {"add": {"tags": ["night"]}} adds values to
    lists, {"remove": {"tags": ["night"]}} removes them; a list without values is removed. All three can be combined:
    the merge patch is applied first, then values are removed, then added. If a key is unknown, nothing changes. Images
    that match are changed a hundred per commit; if interrupted, repeat the request.
    """
    index, where = state.index(), parse_where(query.where)
    changes = await receive_changes(request, state.settings.upload_timeout_s)
    if bool(changes.keys) == (where is not None):
        raise ParameterError("where", query.where, "either the parameter where or keys in the body, and not both")
    if where is None:
        done = await state.in_index(index.change_keys, changes.keys, changes.apply)
    else:
        done = await in_index_until_gone(
            request, state, lambda stopped: index.change_matching(where, changes.apply, stopped=stopped)
        )
        if state.draining_since is not None:
            raise DrainingError
    return MetadataChanged(matched=done.matched, changed=done.changed)


@router.patch(
    "/v1/images/{key:path}",
    operation_id="patch_image",
    summary="Update the metadata of an image",
    dependencies=[WRITE],
    responses=problems(400, 401, 403, 404, 408, 409, 413, 415, 422, 503, 507),
    openapi_extra=_PATCH_BODY,
)
async def patch_image(request: Request, key: Key, state: StateDep) -> ImageInfo:
    """Send a JSON merge patch (RFC 7396), such as {"metadata": {"label": "cat", "year": null}}. Null removes a name."""
    index = state.index()
    patch = await receive_patch(request, state.settings.upload_timeout_s)
    for name in patch.keys() - {"metadata"}:
        raise MetadataError(f'is the only part that can be changed, not {name!r}; send {{"metadata": {{...}}}}')
    changes = patch.get("metadata", {})
    record = await state.in_index(
        index.change_metadata, key, lambda old: {} if changes is None else merge_patch(old, changes)
    )
    return ImageInfo.of(record, state.settings.root_path)


@router.delete(
    "/v1/images",
    operation_id="delete_images",
    summary="Delete all images that match a filter",
    dependencies=[WRITE],
    responses=problems(401, 403, 409, 422, 503, 507),
)
async def delete_images(request: Request, query: Annotated[WhereQuery, Query()], state: StateDep) -> DeletedAnswer:
    """Delete all images that match, a hundred per commit, so that other requests can run in between.

    There is no deadline. If the client disconnects or the server shuts down, the rest is not deleted: repeat the
    request to continue.
    """
    index, where = state.index(), parse_where(query.where)
    if where is None:
        return DeletedAnswer(deleted=0)
    deleted = await in_index_until_gone(request, state, lambda stopped: index.delete_where(where, stopped=stopped))
    if state.draining_since is not None and await state.in_index(lambda: bool(index.list(1, where=where).images)):
        raise DrainingError
    return DeletedAnswer(deleted=deleted)


@router.delete(
    "/v1/images/{key:path}",
    operation_id="delete_image",
    summary="Delete an indexed image",
    dependencies=[WRITE],
    status_code=status.HTTP_204_NO_CONTENT,
    responses=problems(401, 403, 404, 409, 422, 503, 507),
)
async def delete_image(key: Key, state: StateDep) -> None:
    """Delete an image. Later searches do not find it."""
    await state.in_index(state.index().delete, key)


async def _by_novelty(request: Request, query: ListQuery, listing: Listing, state: State) -> Page:
    index = state.index()
    searched = index.searched
    async with state.use_for(searched.fingerprint) as serving:
        reference = serving.reference
    if reference is None:
        raise NoReferenceError(searched.model)

    def work(stopped: Callable[[], bool]) -> Page:
        return index.by_novelty(
            reference, listing, query.limit, query.cursor, fingerprint=searched.fingerprint, stopped=stopped
        )

    return await in_index_until_deadline(request, state, work, share=_SHARE)


def _model_of_index(state: State) -> ModelName:
    return ModelName.of_reference(state.index().searched.model)


def _check_names(names: list[str], metadata: dict[str, Any]) -> None:
    for name, count in Counter(names).items():
        check_key(name)
        if count > 1:
            raise BodyMalformedError(
                f"{count} images have the file name {name!r}. File names are keys and must be unique."
            )
    for name in metadata.keys() - set(names):
        raise MetadataError(f"names {name!r}, but no image of this request has that file name")
