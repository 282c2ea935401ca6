"""Figure 4 of the paper: bars, nearest neighbors, and the drawing."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from PIL import Image

from model_store.training.paper.figure4 import CORRECT, OTHER, LabeledImage, bars, draw_figure4_left, nearest


def share_of_color(pixels: NDArray[np.uint8], color: str) -> float:
    expected = (np.array(to_rgb(color)) * 255).round()
    return float((np.abs(pixels[..., :3] - expected).max(axis=-1) <= 2).mean())


def test_the_bars_are_the_five_most_probable_classes_with_the_correct_one_marked() -> None:
    probabilities = np.array([0.05, 0.3, 0.1, 0.2, 0.25, 0.1], np.float32)
    found = bars(probabilities, "abcdef", "d")
    assert [(bar.label, bar.correct) for bar in found] == [
        ("b", False),
        ("e", False),
        ("d", True),
        ("c", False),
        ("f", False),
    ]
    assert [bar.probability for bar in found] == pytest.approx([0.3, 0.25, 0.2, 0.1, 0.1])
    assert not any(bar.correct for bar in bars(probabilities, "abcdef", "a"))
    assert len(bars(np.array([0.4, 0.6], np.float32), "ab", "a")) == 2


def test_only_the_bar_of_the_correct_class_is_red(tmp_path: Path) -> None:
    image = LabeledImage(np.full((256, 256, 3), 128, np.uint8), "a")
    probabilities = np.array([0.5, 0.3, 0.2], np.float32)
    shares = {}
    for truth in ("a", "b", "z"):
        draw_figure4_left(tmp_path, [image], [bars(probabilities, "abc", truth)], "title")
        with Image.open(tmp_path / "figure4-left.png") as drawn:
            pixels = np.asarray(drawn).astype(int)
        shares[truth] = share_of_color(pixels, CORRECT), share_of_color(pixels, OTHER)
    assert shares["z"][0] == 0
    assert shares["a"][0] > 1.3 * shares["b"][0] > 0  # bars are as long as their probabilities
    assert shares["z"][1] > shares["b"][1] > 0


def test_the_nearest_match_a_plain_loop_and_ties_keep_their_order() -> None:
    random = np.random.default_rng(0)
    gallery = random.random((40, 64), np.float32)
    gallery[31] = gallery[7]
    queries = np.concatenate([random.random((3, 64), np.float32), gallery[7:8]])
    indices, distances = nearest(queries, gallery, 6)
    for row, query in enumerate(queries):
        far = [float(np.sqrt(((query - other) ** 2).sum())) for other in gallery]
        order = sorted(range(40), key=lambda index: (far[index], index))[:6]
        assert indices[row].tolist() == order
        assert distances[row] == pytest.approx([far[index] for index in order], abs=1e-5)
    assert indices[3, :2].tolist() == [7, 31]
