"""The colors of heat maps: even steps for the eye, and the values of the map at the right places."""

from __future__ import annotations

import io

import matplotlib as mpl
import numpy as np
from PIL import Image

from service.inference.heat_map import colored, scaled, to_png


def test_the_colors_are_those_of_inferno_and_get_brighter() -> None:
    values = np.linspace(0, 1, 256).astype(np.float32)
    expected = (mpl.colormaps["inferno"](values)[:, :3] * 255).round()
    colors = colored(values).astype(float)
    assert np.abs(colors - expected).max() <= 16
    assert (np.diff(colors @ [0.2126, 0.7152, 0.0722]) >= 0).all()


def test_each_cell_is_drawn_where_it_is() -> None:
    heat = np.zeros((13, 13), np.float32)
    heat[2, 9] = 5.0
    pixels = np.full((224, 224, 3), 90, np.uint8)
    for under, cold in ((pixels, [90, 90, 90]), (None, [0, 0, 4])):
        with Image.open(io.BytesIO(to_png(heat, under, "solar:1: poly, \ud800"))) as picture:
            drawn = np.asarray(picture).astype(int)
            assert "solar:1" in picture.info["Description"]
        y, x = np.unravel_index(drawn.sum(axis=2).argmax(), (224, 224))
        assert (int((y + 0.5) * 13 / 224), int((x + 0.5) * 13 / 224)) == (2, 9)
        assert drawn[200, 20].tolist() == cold


def test_a_map_without_hot_cells_stays_cold() -> None:
    empty = np.zeros((6, 6), np.float32)
    assert not scaled(empty).any()
    pixels = np.random.default_rng(0).integers(0, 256, (224, 224, 3), np.uint8)
    with Image.open(io.BytesIO(to_png(empty, pixels, ""))) as picture:
        assert (np.asarray(picture) == pixels).all()
