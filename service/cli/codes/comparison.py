"""Compares binary codes for `fc7 codes evaluate`: trained auto-encoders, standard codes, raw pixels, exact fc7."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from index.search.code_quality import (
    CodeQuality,
    EvaluationSet,
    Search,
    exact_search,
    hamming_search,
    measure_code,
    standard_codes,
)
from model_store.code_store import BinaryEncoder
from service.cli import console
from service.cli.codes.data import Sample

if TYPE_CHECKING:
    from model_store.training.autoencoder import CodeOptions


@dataclass(frozen=True, slots=True)
class ComparisonOptions:
    """sizes: bits per code. epochs, seed: of the auto-encoders trained here. plain: also by reconstruction alone."""

    sizes: list[int]
    epochs: int
    seed: int
    plain: bool


def compare_codes(
    sample: Sample,
    queries: NDArray[np.int64],
    options: ComparisonOptions,
    find_encoder: Callable[[int], BinaryEncoder | None],
) -> list[CodeQuality]:
    """Measure codes of each size on the images of a sample.

    queries: rows of the sample that are searched for. find_encoder: returns the auto-encoder of `fc7 codes train` with
    that many bits.
    """
    from model_store.training.autoencoder import CodeOptions  # noqa: PLC0415 - torch

    pixels = sample.pixels
    comparison = _Comparison(EvaluationSet(sample.vectors, sample.classes, queries))
    comparison.add("exact fc7", 2 * sample.vectors.shape[1], exact_search(sample.vectors))
    if pixels is not None:
        comparison.add("raw pixels", pixels.shape[1], exact_search(pixels), pixels)
    for bits in options.sizes:
        usual = CodeOptions(bits, epochs=options.epochs, seed=options.seed)
        plain = CodeOptions.of_plain_form(bits, epochs=options.epochs, seed=options.seed)
        encoder = find_encoder(bits)
        if encoder is not None:
            search = hamming_search(encoder.encode_bits(sample.vectors), encoder.encode_bits)
            comparison.add("auto-encoder", bits // 8, search)
        else:
            console.warn(f"This model has no auto-encoder of {bits} bits. Train one: fc7 codes train --bits {bits}")
        if options.plain:
            comparison.train_and_add("auto-encoder, plain", sample.vectors, plain)
        for code in standard_codes(sample.vectors, bits):
            comparison.add(code.name, bits // 8, code.search)
        if pixels is not None:
            comparison.train_and_add("auto-encoder of pixels", pixels, usual)
            if options.plain:
                comparison.train_and_add("auto-encoder of pixels, plain", pixels, plain)
    return comparison.judged


class _Comparison:
    """Codes measured on one collection."""

    def __init__(self, collection: EvaluationSet) -> None:
        self._collection = collection
        self._exact = collection.exact()
        self.judged: list[CodeQuality] = []

    def add(self, name: str, size: int, search: Search, rows: NDArray[np.float32] | None = None) -> None:
        """Measure a code of `size` bytes. rows: what it searches in, if not the vectors."""
        self.judged.append(measure_code(name, size, search, self._collection, self._exact, rows=rows))

    def train_and_add(self, name: str, rows: NDArray[np.float32], options: CodeOptions) -> None:
        """Train an auto-encoder on `rows` and measure it."""
        from model_store.training.autoencoder import train_codes  # noqa: PLC0415 - torch

        with console.ProgressBar(f"training {options.bits} bits, {name}", "steps") as bar:
            net = train_codes(rows, options, lambda step, steps, loss: bar.update(step, steps, f"loss {loss:.3f}")).net
        self.add(name, options.bits // 8, hamming_search(net.bits(rows), net.bits), rows)
