"""The quality figures of short codes, and the codes of FAISS."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from index.search.code_quality import EvaluationSet, exact_search, hamming_search, measure_code, standard_codes
from tests.index.helpers import activations


def test_quality_is_measured_by_neighbors_and_classes() -> None:
    rng = np.random.default_rng(0)
    classes = np.repeat(np.arange(4), 100)
    rows = (4 * rng.standard_normal((4, 64))[classes] + rng.standard_normal((400, 64))).astype(np.float32)
    data = EvaluationSet(rows, classes, np.arange(0, 400, 9))
    exact = data.exact()
    truth = [np.argsort(((rows - rows[q]) ** 2).sum(axis=1))[1:11].tolist() for q in data.queries]
    assert [set(found) for found in exact.tolist()] == [set(found) for found in truth]
    best = measure_code("exact", 256, exact_search(rows), data, exact)
    assert (best.recall, best.recall_wide, best.bytes) == (1, 1, 256)
    assert best.precision is not None
    assert best.precision > 0.95
    assert best.mean_average_precision is not None
    random_code = measure_code(
        "random",
        8,
        hamming_search(rng.random((400, 64)) > 0.5, lambda x: rng.random((len(x), 64)) > 0.5),
        data,
        exact,
    )
    assert random_code.recall < 0.2
    assert random_code.precision is not None
    assert 0.1 < random_code.precision < 0.4
    assert random_code.mean_average_precision is not None
    assert 0.2 < random_code.mean_average_precision < 0.35
    without_classes = measure_code("exact", 256, exact_search(rows), replace(data, classes=None), exact)
    assert without_classes.precision is None


def test_the_standard_codes_are_better_than_chance() -> None:
    floats = activations(600).astype(np.float32)
    data = EvaluationSet(floats, None, np.arange(0, 600, 20))
    exact = data.exact()
    codes = list(standard_codes(floats, 128))
    recalls = {code.name: measure_code(code.name, 16, code.search, data, exact).recall for code in codes}
    assert list(recalls) == ["sign-LSH", "PCA+ITQ", "OPQ+PQ", "OPQ+PQ fast-scan", "RaBitQ"]
    assert min(recalls.values()) > 3 * 10 / 600
    assert recalls["PCA+ITQ"] > recalls["sign-LSH"]
    # Centroids keep distances, while sign bits keep only the side of each hyperplane.
    assert min(recalls["OPQ+PQ"], recalls["OPQ+PQ fast-scan"]) > recalls["PCA+ITQ"]
    assert [code.name for code in standard_codes(floats[:200], 128)] == ["sign-LSH", "PCA+ITQ", "RaBitQ"]
