"""Scaling large JPEGs in the decoder hardly changes the pixels and the outputs of the net."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from model_store import image
from model_store.image import prepare, views
from tests.support.training.run_folder import small_architecture, small_net


def photograph(seed: int, size: tuple[int, int]) -> bytes:
    """Return a JPEG with edges at every scale: a sum of noise octaves."""
    random = np.random.default_rng(seed)
    total = np.zeros((size[1], size[0], 3))
    for octave in range(3, 11):
        side = 2**octave
        noise = Image.fromarray(random.integers(0, 256, (side, side, 3), np.uint8)).resize(
            size, Image.Resampling.BICUBIC
        )
        total += (np.asarray(noise) - 127.5) * 0.7**octave
    file = io.BytesIO()
    Image.fromarray(np.clip(total * (60 / total.std()) + 127.5, 0, 255).astype(np.uint8)).save(file, "JPEG", quality=90)
    return file.getvalue()


def test_scaling_in_the_decoder_hardly_changes_fc7_and_keeps_the_order_of_classes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    files = [photograph(0, (2048, 1536)), photograph(1, (1200, 1800))]
    scaled = np.stack([prepare(data) for data in files])
    monkeypatch.setattr(image, "_LEAST_SIZE", 10**6)
    full = np.stack([prepare(data) for data in files])
    assert (scaled != full).any(), "the decoder did not scale"
    assert np.abs(scaled.astype(int) - full).mean() < 1.5
    net = small_net(small_architecture())
    with torch.inference_mode():
        first, second = (
            net.forward_both(torch.from_numpy(views(pixels).transpose(0, 3, 1, 2).astype(np.float32) - 120.0))
            for pixels in (scaled, full)
        )
    assert torch.nn.functional.cosine_similarity(first[1], second[1]).min() > 0.999
    assert (first[0].argsort(descending=True) == second[0].argsort(descending=True)).all()
