"""Operations that ask about images: classify, search, similar, explain, heat_map, embed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx

from fc7_client.binding import operation
from fc7_client.models import ClassifyAnswer, EmbedAnswer, ExplainAnswer, SearchAnswer
from fc7_client.requests import ImageSource, Where, ask, image_parts, image_path, json_request, parameters, read_all
from fc7_client.steps import Flow, Request


class QueryOperations:
    """Operations that ask about images. A request may have at most as many images as the server allows (32)."""

    @operation
    def classify(
        self,
        *images: ImageSource,
        k: int | None = None,
        views: int | None = None,
        by: str | None = None,
        neighbours: int | None = None,
        field: str | None = None,
        threshold: float | None = None,
        explain: bool | None = None,
        model: str | None = None,
    ) -> Flow[ClassifyAnswer]:
        """Return the most probable classes of each image.

        k: number of classes. views: 1 or 10 crops to average. by: "network", or "neighbours" for a vote of the labeled
        images of the index (`neighbours` of them, labels in the metadata field `field`). threshold: share of the
        model's own validation images to accept, 0 to 1. explain: with a heat map. model: NAME:VERSION.
        """
        params = parameters(
            k=k,
            views=views,
            by=by,
            neighbours=neighbours,
            field=field,
            threshold=threshold,
            explain=explain,
            model=model,
        )
        files = image_parts((yield from read_all(images)))
        return (yield from ask(Request("POST", "/v1/classify", params=params, files=files), ClassifyAnswer))

    @operation
    def search(
        self,
        *images: ImageSource,
        k: int | None = None,
        mode: str | None = None,
        max_distance: float | None = None,
        where: Where = None,
        include: Sequence[str] | None = None,
        threshold: float | None = None,
        model: str | None = None,
    ) -> Flow[SearchAnswer]:
        """Return the most similar indexed images of each image.

        k: number of neighbors. mode: exact, fast or codes. include: "classes" and "novelty", what to return besides.
        """
        params = parameters(
            k=k,
            mode=mode,
            max_distance=max_distance,
            where=where,
            include=_joined(include),
            threshold=threshold,
            model=model,
        )
        files = image_parts((yield from read_all(images)))
        return (yield from ask(Request("POST", "/v1/search", params=params, files=files), SearchAnswer))

    @operation
    def search_vectors(
        self,
        *vectors: Sequence[float],
        model: str,
        k: int | None = None,
        mode: str | None = None,
        max_distance: float | None = None,
        where: Where = None,
    ) -> Flow[SearchAnswer]:
        """Return the most similar indexed images of each fc7 vector. model: the version that computed the vectors."""
        params = parameters(k=k, mode=mode, max_distance=max_distance, where=where, model=model)
        document = {"vectors": [list(vector) for vector in vectors]}
        return (yield from ask(json_request("POST", "/v1/search", document, params=params), SearchAnswer))

    @operation
    def search_examples(
        self,
        positive: Sequence[str],
        negative: Sequence[str] = (),
        *,
        k: int | None = None,
        mode: str | None = None,
        max_distance: float | None = None,
        where: Where = None,
    ) -> Flow[SearchAnswer]:
        """Return one result: indexed images like those with the keys `positive`, and unlike `negative`."""
        params = parameters(k=k, mode=mode, max_distance=max_distance, where=where)
        document: Mapping[str, Any] = {"positive": [{"key": key} for key in positive]}
        if negative:
            document = {**document, "negative": [{"key": key} for key in negative]}
        return (yield from ask(json_request("POST", "/v1/search", document, params=params), SearchAnswer))

    @operation
    def similar(
        self,
        key: str,
        *,
        k: int | None = None,
        mode: str | None = None,
        max_distance: float | None = None,
        where: Where = None,
    ) -> Flow[SearchAnswer]:
        """Return the indexed images that are most similar to an indexed one. Raises NotFoundError."""
        params = parameters(k=k, mode=mode, max_distance=max_distance, where=where)
        return (yield from ask(Request("GET", image_path(key, "/similar"), params=params), SearchAnswer))

    @operation
    def explain(
        self, image: ImageSource, *, class_: str | None = None, near: str | None = None, model: str | None = None
    ) -> Flow[ExplainAnswer]:
        """Return what in an image speaks for a class, by default the most probable one, as a grid of values.

        near: instead, what makes it similar to the indexed image with this key.
        """
        params = parameters(class_=class_, near=near, model=model, format="json")
        files = image_parts((yield from read_all([image])))
        return (yield from ask(Request("POST", "/v1/explain", params=params, files=files), ExplainAnswer))

    @operation
    def heat_map(
        self,
        image: ImageSource,
        *,
        class_: str | None = None,
        near: str | None = None,
        overlay: bool | None = None,
        model: str | None = None,
    ) -> Flow[bytes]:
        """Return what `explain` explains as a PNG. overlay: over the crop that the model sees."""
        params = parameters(class_=class_, near=near, overlay=overlay, model=model, format="png")
        files = image_parts((yield from read_all([image])))
        response: httpx.Response = yield Request("POST", "/v1/explain", params=params, files=files)
        return response.content

    @operation
    def embed(self, *images: ImageSource, views: int | None = None, model: str | None = None) -> Flow[EmbedAnswer]:
        """Return the fc7 vector of each image."""
        params = parameters(views=views, model=model, encoding_format="base64")
        files = image_parts((yield from read_all(images)))
        return (yield from ask(Request("POST", "/v1/embed", params=params, files=files), EmbedAnswer))


def _joined(values: Sequence[str] | None) -> str | None:
    """Return the values as one parameter: an empty list must be sent, too."""
    return None if values is None else ",".join([values] if isinstance(values, str) else values)
