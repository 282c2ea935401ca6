"""Heads: which labels are accepted, how classes are named and ordered, and honest figures."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model_store.head.errors import OneClassError, TooFewLabelsError
from model_store.head.fit import fit_head
from model_store.head.sample import LabelledSample


def vectors(labels: list[str], seed: int = 0, noise: float = 1.0) -> NDArray[np.float16]:
    """Return vectors that are alike within a class: float16 [n, 64]."""
    random = np.random.default_rng(seed)
    centers = {label.lower(): np.random.default_rng(ord(label[0].lower())).standard_normal(64) for label in labels}
    rows = [centers[label.lower()] + noise * random.standard_normal(64) for label in labels]
    return np.maximum(rows, 0).astype(np.float16)


def test_a_head_classifies_images_that_it_did_not_see() -> None:
    labels = ["cat", "dog", "heron"] * 20
    fitted = fit_head(vectors(labels), labels, known=["heron", "ferry", "cat"])
    head = fitted.head
    assert head.labels == ("heron", "cat", "dog")  # those of the model in its order, then new ones
    others = vectors(labels, seed=1).astype(np.float32)
    found = (others @ head.weights.T + head.biases).argmax(axis=1)
    accuracy = np.mean([head.labels[number] == label for number, label in zip(found, labels, strict=True)])
    assert accuracy > 0.8
    assert abs(fitted.figures.top1_accuracy - accuracy) < 0.2
    assert fitted.figures.images == fitted.images == 60
    assert fitted.metrics()["better_than_baseline"]


def test_figures_of_meaningless_labels_are_no_better_than_the_baseline() -> None:
    labels = ["cat", "dog"] * 30
    fitted = fit_head(vectors(["x"] * 60), labels)
    assert not fitted.metrics()["better_than_baseline"]


def test_a_class_with_too_few_images_is_named() -> None:
    labels = ["cat"] * 8 + ["dog"] * 8 + ["dgo"] * 2
    with pytest.raises(TooFewLabelsError, match=r"at least 5.*'dgo' has 2 and needs 3 more"):
        fit_head(vectors(labels), labels)
    fitted = fit_head(vectors(labels), labels, skip_small=True)
    assert fitted.head.labels == ("cat", "dog")
    assert (fitted.left_out, fitted.images) == ({"dgo": 2}, 16)
    with pytest.raises(TooFewLabelsError, match="'dog' has 4"):
        fit_head(vectors(labels[:12]), labels[:12], skip_small=True)


def test_one_class_is_not_enough() -> None:
    with pytest.raises(OneClassError, match="All 9 labeled images are of the class 'cat'"):
        fit_head(vectors(["cat"] * 9), ["cat"] * 9)


def test_copies_of_an_image_count_once() -> None:
    labels = ["cat"] * 8 + ["dog"] * 8
    rows = vectors(labels)
    rows[1:8] = rows[0]
    with pytest.raises(TooFewLabelsError, match="'cat' has 1 and needs 4 more"):
        fit_head(rows, labels)


def test_labels_that_look_alike_are_one_class() -> None:
    labels = ["Cat"] * 3 + ["cat"] * 6 + ["dog"] * 9
    fitted = fit_head(vectors(labels), labels)
    assert fitted.head.labels == ("cat", "dog")
    assert fitted.notes == ("The labels 'Cat' and 'cat' are one class, 'cat'.",)
    assert fit_head(vectors(labels), labels, known=["Cat", "Dog"]).head.labels == ("Cat", "Dog")


def test_a_sample_has_equal_shares_of_the_classes_in_any_order() -> None:
    labels = ["cat"] * 300 + ["dog"] * 5
    keys = [str(number) for number in range(305)]
    rows = np.arange(305, dtype=np.float16)[:, None]
    kept = []
    for order in (np.arange(305), np.random.default_rng(0).permutation(305)):
        sample = LabelledSample(20)
        for part in np.array_split(order, 40):
            sample.add([keys[n] for n in part], [labels[n] for n in part], rows[part])
        assert sample.total == 305
        kept.append({int(value) for value in sample.vectors()[:, 0]})
        assert sample.labels.count("dog") == 5
        assert len(sample.labels) == 20
    assert kept[0] == kept[1]
