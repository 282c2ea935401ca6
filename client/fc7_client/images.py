"""Operations on indexed images: add, put, get, list, label and delete them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from fc7_client.binding import listing, operation
from fc7_client.errors import UnexpectedAnswerError
from fc7_client.models import (
    AddAnswer,
    AddResult,
    FieldsAnswer,
    FieldValue,
    Image,
    ImagePage,
    MetadataChanged,
    SuggestionsAnswer,
)
from fc7_client.requests import ImageSource, Where, ask, image_path, json_request, parameters, read_all
from fc7_client.steps import Flow, Pages, Request

PAGE = 1000  # images, the server's maximum


def put(key: str, image: ImageSource, metadata: Mapping[str, Any] | None) -> Flow[AddResult]:
    """Add or replace one image."""
    [data] = yield from read_all([image])
    fields = {} if metadata is None else {"metadata": json.dumps(metadata)}
    request = Request("PUT", image_path(key), files=[("file", "image", data)], fields=fields)
    return (yield from ask(request, AddResult))


def page_of(
    cursor: str | None, *, where: Where = None, prefix: str | None = None, order: str | None = None, limit: int = PAGE
) -> Flow[ImagePage]:
    """Return a page of indexed images."""
    params = parameters(cursor=cursor, where=where, prefix=prefix, order=order, limit=limit)
    return (yield from ask(Request("GET", "/v1/images", params=params), ImagePage))


class ImageOperations:
    """Operations on indexed images."""

    @operation
    def put_image(self, key: str, image: ImageSource, metadata: Mapping[str, Any] | None = None) -> Flow[AddResult]:
        """Add an image, or replace the one with this key. metadata: a JSON object to store with it."""
        return (yield from put(key, image, metadata))

    @operation
    def add_images(
        self, images: Mapping[str, ImageSource], metadata: Mapping[str, Mapping[str, Any]] | None = None
    ) -> Flow[AddAnswer]:
        """Add several images in one request: all of them, or none if one is invalid.

        images: by key. metadata: by key. Raises ValueError for a key that a multipart body cannot carry.
        """
        for key in images:
            if any(character in key for character in '"\\\r\n') or not key:
                raise ValueError(f"The key {key!r} cannot be a file name in a form. Use put_image for it.")
        data = yield from read_all(images.values())
        fields = {} if metadata is None else {"metadata": json.dumps(metadata)}
        files = [("file", key, each) for key, each in zip(images, data, strict=True)]
        return (yield from ask(Request("POST", "/v1/images", files=files, fields=fields), AddAnswer))

    @operation
    def get_image(self, key: str) -> Flow[Image]:
        """Return an indexed image. Raises NotFoundError."""
        return (yield from ask(Request("GET", image_path(key)), Image))

    @operation
    def thumbnail(self, key: str) -> Flow[bytes]:
        """Return the thumbnail of an indexed image as a JPEG file. Raises NotFoundError."""
        response: httpx.Response = yield Request("GET", image_path(key, "/thumbnail"))
        return response.content

    @listing
    def list_images(
        self, *, where: Where = None, prefix: str | None = None, order: str | None = None, page_size: int = PAGE
    ) -> Pages[Image]:
        """Iterate over the indexed images, requesting page after page.

        prefix: of the keys. order: added, updated, key (a - before it reverses it) or random.
        """

        def page(cursor: str | None) -> Flow[tuple[Sequence[Image], str | None]]:
            found = yield from page_of(cursor, where=where, prefix=prefix, order=order, limit=page_size)
            return found.images, found.next_cursor

        return page

    @operation
    def delete_image(self, key: str) -> Flow[None]:
        """Delete an indexed image. Raises NotFoundError."""
        yield Request("DELETE", image_path(key))

    @operation
    def delete_images(self, where: str | Sequence[str]) -> Flow[int]:
        """Delete all images that match, and return how many were deleted."""
        response: httpx.Response = yield Request("DELETE", "/v1/images", params=parameters(where=where))
        return _number(response, "deleted")

    @operation
    def update_metadata(self, key: str, changes: Mapping[str, Any]) -> Flow[Image]:
        """Change the metadata of an image by a JSON merge patch. Names with the value None are removed."""
        return (yield from ask(json_request("PATCH", image_path(key), {"metadata": changes}), Image))

    @operation
    def label_images(
        self, label: str | None, *, keys: Sequence[str] | None = None, where: Where = None, field: str = "label"
    ) -> Flow[MetadataChanged]:
        """Label the images with these keys, or those that match `where`. label: None removes it."""
        document: dict[str, Any] = {"metadata": {field: label}}
        if keys is not None:
            document["keys"] = list(keys)
        request = json_request("PATCH", "/v1/images", document, params=parameters(where=where))
        return (yield from ask(request, MetadataChanged))

    @operation
    def labels(self, *, field: str = "label", where: Where = None, limit: int | None = None) -> Flow[list[FieldValue]]:
        """Return the labels of the indexed images with their counts, most frequent first."""
        request = Request("GET", "/v1/index/fields", params=parameters(field=field, where=where, limit=limit))
        answer = yield from ask(request, FieldsAnswer)
        return [value for each in answer.fields for value in each.values]

    @operation
    def fields(self, *, where: Where = None, limit: int | None = None) -> Flow[FieldsAnswer]:
        """Return the metadata fields of the indexed images, and their values."""
        request = Request("GET", "/v1/index/fields", params=parameters(where=where, limit=limit))
        return (yield from ask(request, FieldsAnswer))

    @operation
    def suggestions(
        self, *, field: str | None = None, where: Where = None, limit: int | None = None
    ) -> Flow[SuggestionsAnswer]:
        """Return images to label, the most useful first."""
        request = Request("GET", "/v1/images/suggestions", params=parameters(field=field, where=where, limit=limit))
        return (yield from ask(request, SuggestionsAnswer))


def _number(response: httpx.Response, name: str) -> int:
    try:
        return int(response.json()[name])
    except (ValueError, KeyError, TypeError) as error:
        raise UnexpectedAnswerError(str(response.url), f"{name} is missing") from error
