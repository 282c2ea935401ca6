"""Add images to the index: embedded by every model whose vectors the index needs.

Guarantees: all images are added, or none. If the index switches to another model meanwhile, they are embedded again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from fastapi import Request
from numpy.typing import NDArray

from index.bulk.add import PreparedFile, new_images, required_fingerprints
from index.errors import IndexSwitchedError
from index.records import AddOutcome, NewImage, encode_metadata
from service.api.schemas.images import AddResult, ImageInfo
from service.errors import ModelNotLoadedError
from service.inference.embed import Embedded
from service.observability.request_log import notes_of
from service.state import State


async def add_batch(
    request: Request, state: State, data: list[bytes], keys: Sequence[str | None], metadata: list[dict[str, Any] | None]
) -> list[AddResult]:
    """Add all images or none. An image that is already indexed with the same bytes and metadata does not change."""
    index = state.index()
    for entry in metadata:
        if entry is not None:
            encode_metadata(entry)

    def find_new() -> tuple[list[str], list[str], list[int]]:
        """Return the hash and the key of each image, and the numbers of the images to add."""
        digests = [hashlib.sha256(image).hexdigest() for image in data]
        names = [key or digest for key, digest in zip(keys, digests, strict=True)]
        known = index.lookup(names)
        return digests, names, [i for i, n in enumerate(names) if known.get(n) != digests[i] or metadata[i] is not None]

    def store(images: list[NewImage]) -> list[AddResult]:
        """Add the images, which are those with the numbers `new`, and return the result for every image."""
        outcomes = dict(zip(new, index.add_many(images), strict=True)) if images else {}
        return [
            AddResult(
                outcome=outcomes.get(i, AddOutcome.UNCHANGED),
                image=ImageInfo.of(index.get(name), state.settings.root_path),
            )
            for i, name in enumerate(names)
        ]

    digests, names, new = await state.in_index(find_new)
    if not new:
        return await state.in_index(store, [])
    while True:
        fingerprints = required_fingerprints(index)
        try:
            embedded, vectors = await _embed(request, state, [data[i] for i in new], fingerprints)
            files = [
                PreparedFile(names[i], digests[i], len(data[i]), image.prepared, image.picture, metadata[i])
                for i, image in zip(new, embedded, strict=True)
            ]
            results = await state.in_index(store, new_images(files, vectors))
        except (IndexSwitchedError, ModelNotLoadedError):
            if required_fingerprints(index) == fingerprints:
                raise  # otherwise the index switched to another model in the meantime: embed again
        else:
            state.versions.images_added()
            return results


async def _embed(
    request: Request, state: State, data: list[bytes], fingerprints: list[str]
) -> tuple[list[Embedded], dict[str, list[NDArray[np.float32]]]]:
    """Return the images, and their vectors from the model with each of the fingerprints."""
    results: dict[str, list[Embedded]] = {}
    for fingerprint in fingerprints:
        async with state.use_for(fingerprint) as serving:
            pictures = state.settings.keep_pictures and not results
            notes = notes_of(request.scope)
            results[fingerprint] = await state.embedder.embed(notes, serving, data, pictures=pictures)
    vectors = {fingerprint: [image.prediction.fc7 for image in images] for fingerprint, images in results.items()}
    return results[fingerprints[0]], vectors
