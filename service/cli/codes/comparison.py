"""Compares binary codes for `fc7 codes evaluate`: trained auto-encoders, standard codes, raw pixels, exact fc7."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from index.errors import PictureNotFoundError
from index.local.index import LocalImageIndex
from index.search import code_quality
from index.search.code_quality import CodeQuality, EvaluationSet
from model_store.code_store import BinaryEncoder
from service.cli import console

if TYPE_CHECKING:
    from model_store.training.autoencoder import CodeOptions

SIDE: Final = 32  # pixels, as in CIFAR-10
_PAGE: Final = 1000


def collect(
    index: LocalImageIndex, field: str | None, limit: int, queries: int, seed: int, *, pixels: bool
) -> tuple[EvaluationSet, NDArray[np.float32] | None]:
    """Return up to `limit` images that have a vector, up to `queries` of them as queries, and their raw pixels.

    field: the metadata field with the class; None for the folder in the key. There are no classes if all images have
    the same. The pixels, float32 [n, 3072] from 0 to 255, are None if not requested or an image has no stored picture.
    """
    found: list[tuple[str, str]] = []
    cursor = None
    while True:
        page = index.list(_PAGE, cursor)
        for image in page.images:
            name = image.key.rpartition("/")[0] if field is None else str(image.metadata.get(field, ""))
            found.append((image.key, name))
        cursor = page.next_cursor
        if cursor is None:
            break
    order = np.random.default_rng(seed).permutation(len(found))[:limit]
    chosen = [found[number] for number in np.sort(order)]
    vectors = index.vectors([key for key, _ in chosen])
    kept = [(key, name) for key, name in chosen if key in vectors]
    keys = [key for key, _ in kept]
    names = sorted({name for _, name in kept})
    classes = np.array([names.index(name) for _, name in kept], np.int64) if len(names) > 1 else None
    rows = np.array([vectors[key] for key in keys], np.float32).reshape(len(kept), -1)
    query_rows = np.sort(np.random.default_rng(seed).permutation(len(kept))[:queries])
    return EvaluationSet(rows, classes, query_rows), _raw_pixels(index, keys) if pixels else None


def _raw_pixels(index: LocalImageIndex, keys: Sequence[str]) -> NDArray[np.float32] | None:
    """Return the stored pictures at 32x32, float32 [n, 3072] from 0 to 255, or None if an image has no picture."""
    rows = np.empty((len(keys), 3 * SIDE * SIDE), np.float32)
    try:
        for number, key in enumerate(keys):
            with Image.open(BytesIO(index.picture(key))) as picture:
                small = picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)
            rows[number] = np.asarray(small, np.float32).reshape(-1)
    except PictureNotFoundError:
        return None
    return rows


def compare_codes(
    images: EvaluationSet,
    pixels: NDArray[np.float32] | None,
    sizes: Sequence[int],
    find_encoder: Callable[[int], BinaryEncoder | None],
    *,
    epochs: int,
    seed: int,
    plain: bool,
) -> list[CodeQuality]:
    """Measure codes of each size, in bits.

    find_encoder: returns the auto-encoder of `fc7 codes train` with that many bits. epochs, seed: of the auto-encoders
    trained here. plain: also train auto-encoders by reconstruction alone.
    """
    from model_store.training.autoencoder import CodeOptions  # noqa: PLC0415 - torch

    vectors = images.vectors
    comparison = _Comparison(images)
    comparison.add("exact fc7", 2 * vectors.shape[1], code_quality.exact_search(vectors))
    if pixels is not None:
        comparison.add("raw pixels", pixels.shape[1], code_quality.exact_search(pixels), pixels)
    for bits in sizes:
        usual = CodeOptions(bits, epochs=epochs, seed=seed)
        plain_form = CodeOptions.of_plain_form(bits, epochs=epochs, seed=seed)
        encoder = find_encoder(bits)
        if encoder is not None:
            search = code_quality.hamming_search(encoder.encode_bits(vectors), encoder.encode_bits)
            comparison.add("auto-encoder", bits // 8, search)
        else:
            console.warn(f"This model has no auto-encoder of {bits} bits. Train one: fc7 codes train --bits {bits}")
        if plain:
            comparison.train_and_add("auto-encoder, plain", vectors, plain_form)
        for code in code_quality.standard_codes(vectors, bits):
            comparison.add(code.name, bits // 8, code.search)
        if pixels is not None:
            comparison.train_and_add("auto-encoder of pixels", pixels, usual)
            if plain:
                comparison.train_and_add("auto-encoder of pixels, plain", pixels, plain_form)
    return comparison.results


class _Comparison:
    """Codes measured on the same images."""

    def __init__(self, images: EvaluationSet) -> None:
        self._images = images
        self._exact = images.exact()
        self.results: list[CodeQuality] = []

    def add(self, name: str, size: int, search: code_quality.Search, rows: NDArray[np.float32] | None = None) -> None:
        """Measure a code of `size` bytes. rows: what it searches in, if not the vectors."""
        quality = code_quality.measure_code(name, size, search, self._images, self._exact, rows=rows)
        self.results.append(quality)

    def train_and_add(self, name: str, rows: NDArray[np.float32], options: CodeOptions) -> None:
        """Train an auto-encoder on `rows` and measure it."""
        from model_store.training.autoencoder import train_codes  # noqa: PLC0415 - torch

        with console.ProgressBar(f"training {options.bits} bits, {name}", "steps") as bar:
            net = train_codes(rows, options, lambda step, steps, loss: bar.update(step, steps, f"loss {loss:.3f}")).net
        self.add(name, options.bits // 8, code_quality.hamming_search(net.bits(rows), net.bits), rows)
