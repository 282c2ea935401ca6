"""Mixup, compared with its formula."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_store.training.data.augment import mix

KEY = (3, 1, 4)


def test_mixup_blends_images_and_labels_by_the_same_factor() -> None:
    x = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2).contiguous()
    labels = torch.tensor([0, 1, 2, 3, 4])
    mixed, targets = mix(x, labels, 6, 1.0, KEY)
    assert torch.equal(x[:, 0, 0, 0], torch.arange(5.0))
    assert targets.shape == (5, 6)
    assert targets.sum(1).tolist() == pytest.approx([1] * 5)
    # The value of an image is its label, so a blended image must have the mean of its blended label.
    assert torch.allclose(mixed[:, 1, 1, 1], targets @ torch.arange(6.0), atol=1e-5)
    shares = {round(float(row[row > 0].max()), 5) for row in targets if (row > 0).sum() == 2}
    assert len(shares) == 1


def test_the_mixup_factor_follows_the_beta_distribution_and_depends_only_on_the_key() -> None:
    x, labels = torch.zeros(2, 3, 1, 1), torch.tensor([0, 1])
    firsts = []
    for step in range(4000):
        _, targets = mix(x, labels, 2, 0.4, (0, 0, step))
        firsts.append(float(targets[0, 0]))
    blended = [share for share in firsts if share < 1]  # half of the permutations of two images do not blend them
    assert 0.4 < len(blended) / len(firsts) < 0.6
    expected = np.random.default_rng(0).beta(0.4, 0.4, 200_000)
    assert np.std(blended) == pytest.approx(np.std(expected), abs=0.02)
    assert np.mean(blended) == pytest.approx(0.5, abs=0.03)
    x, labels = torch.zeros(9, 3, 1, 1), torch.arange(9)
    assert torch.equal(mix(x, labels, 9, 0.4, KEY)[1], mix(x, labels, 9, 0.4, KEY)[1])
    for other in ((4, 1, 4), (3, 2, 4), (3, 1, 5)):
        assert not torch.equal(mix(x, labels, 9, 0.4, KEY)[1], mix(x, labels, 9, 0.4, other)[1])
