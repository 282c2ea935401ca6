"""The steps from an image file to the index, shared by uploads, archives, folders and Ray workers.

`prepare_file` hashes and decodes a file, `PreparedBatch.of` collects a batch of results, and `new_images` or
`add_files` joins the files with their vectors.

Guarantees: a file is not decoded if the index already has the same bytes under its key; a file that cannot be read is
skipped with a reason, and does not affect the other files.
Out of scope: running the model. Each caller has its own way: a runner, or the queue of a served model.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, Self

import numpy as np
from numpy.typing import NDArray

from index.errors import InvalidKeyError
from index.interface import ImageIndex
from index.records import AddOutcome, NewImage
from model_store.decoder.decoder import Decoder
from model_store.errors import ImageError
from model_store.image import PreparedImage, encode_jpeg
from model_store.image_files import SkipKind, Skipped, escape_name
from model_store.prefetch import In


@dataclass(frozen=True, slots=True)
class PreparedFile:
    """A decoded image file. size: bytes of the file; picture: the JPEG to store, or None; metadata: see NewImage."""

    key: str
    sha256: str
    size: int
    image: PreparedImage
    picture: bytes | None
    metadata: Mapping[str, Any] | None = None

    def new_image(
        self, vector: NDArray[np.float32], vectors: Mapping[str, NDArray[np.float32]] | None = None
    ) -> NewImage:
        """Return the image to add, with its fc7 activations, float32 [4096]; `vectors` as in NewImage."""
        return NewImage(
            key=self.key,
            sha256=self.sha256,
            size=self.size,
            width=self.image.width,
            height=self.image.height,
            metadata=self.metadata,
            picture=self.picture,
            vector=vector,
            vectors=vectors or {},
        )


def prepare_file(
    key: str, data: bytes, known: str | None, *, decoder: Decoder, keep_picture: bool
) -> PreparedFile | None:
    """Hash and decode a file. Return None if its SHA-256 equals `known`, the SHA-256 indexed under `key`.

    Raises ImageError.
    """
    sha256 = hashlib.sha256(data).hexdigest()
    if sha256 == known:
        return None
    image = decoder.decode(data)
    return PreparedFile(key, sha256, len(data), image, encode_jpeg(image.pixels) if keep_picture else None)


@dataclass(slots=True)
class PreparedBatch(Generic[In]):
    """The results of `prepare_file` for a batch of items; skipped: (item, error)."""

    files: list[tuple[In, PreparedFile]] = field(default_factory=list)
    unchanged: list[In] = field(default_factory=list)
    skipped: list[tuple[In, OSError | ImageError | InvalidKeyError]] = field(default_factory=list)

    @classmethod
    def of(cls, results: Iterable[tuple[In, Callable[[], PreparedFile | None]]]) -> Self:
        """Call the functions and sort what they return. An error other than of an unreadable file or key is raised."""
        batch = cls()
        for item, result in results:
            try:
                file = result()
            except (OSError, ImageError, InvalidKeyError) as error:
                batch.skipped.append((item, error))
                continue
            if file is None:
                batch.unchanged.append(item)
            else:
                batch.files.append((item, file))
        return batch


def skipped_file(name: str, error: OSError | ImageError | InvalidKeyError) -> Skipped:
    """Return the report's entry of a file that could not be prepared. name: not escaped yet."""
    if isinstance(error, InvalidKeyError):
        return Skipped(escape_name(name), str(error), SkipKind.INVALID_KEY)
    return Skipped.of(name, error)


def required_fingerprints(index: ImageIndex) -> list[str]:
    """Return the fingerprints of the models for which an added image needs a vector, the searched model first."""
    return [model.fingerprint for model in index.spaces.required]


def new_images(files: Sequence[PreparedFile], vectors: Mapping[str, Sequence[NDArray[np.float32]]]) -> list[NewImage]:
    """Return the images to add. vectors: by fingerprint, for each file its fc7 activations, float32 [4096]."""
    rows = [dict(zip(vectors, row, strict=True)) for row in zip(*vectors.values(), strict=True)]
    return [file.new_image(next(iter(row.values())), row) for file, row in zip(files, rows, strict=True)]


def add_files(
    index: ImageIndex,
    files: Sequence[PreparedFile],
    embed: Callable[[str, Sequence[PreparedFile]], Sequence[NDArray[np.float32]]],
) -> list[AddOutcome]:
    """Embed the files with every model that the index requires, and add them in one commit.

    embed: returns the vectors of the files by the model with this fingerprint. Raises what `embed` and
    `ImageIndex.add_many` raise; after IndexSwitchedError, call it again.
    """
    vectors = {fingerprint: embed(fingerprint, files) for fingerprint in required_fingerprints(index)}
    return index.add_many(new_images(files, vectors))
