"""Mixup, compared with its formula, in one process and in several."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model_store.training.data.mixup import draw_share, mix

KEY = (3, 1, 4)


def mixed_whole(
    x: torch.Tensor, labels: torch.Tensor, classes: int, alpha: float, key: tuple[int, int, int]
) -> tuple[torch.Tensor, torch.Tensor]:
    return mix(x, labels, classes, draw_share((0, len(x)), len(x), alpha, key))


def test_mixup_blends_images_and_labels_by_the_same_factor() -> None:
    x = torch.arange(5.0)[:, None, None, None].expand(5, 3, 2, 2).contiguous()
    labels = torch.tensor([0, 1, 2, 3, 4])
    mixed, targets = mixed_whole(x, labels, 6, 1.0, KEY)
    assert torch.equal(x[:, 0, 0, 0], torch.arange(5.0))
    assert targets.shape == (5, 6)
    assert targets.sum(1).tolist() == pytest.approx([1] * 5)
    # The value of an image is its label, so a blended image must have the mean of its blended label.
    assert torch.allclose(mixed[:, 1, 1, 1], targets @ torch.arange(6.0), atol=1e-5)
    shares = {round(float(row[row > 0].max()), 5) for row in targets if (row > 0).sum() == 2}
    assert len(shares) == 1


@pytest.mark.parametrize("alpha", [0.0, 0.7])
def test_processes_that_share_a_batch_blend_the_same_images_as_one(alpha: float) -> None:
    images, count = torch.randn((9, 3, 2, 2), generator=torch.Generator().manual_seed(1)), 9
    labels = torch.arange(9) % 4
    whole = mixed_whole(images, labels, 4, alpha, KEY)
    shares = [draw_share(own, count, alpha, KEY) for own in ((0, 3), (3, 6), (6, 9))]
    assert all(len(share.rows) <= (6 if alpha else 3) for share in shares)  # own images and partners only
    parts = [mix(images[share.rows], labels[share.rows], 4, share) for share in shares]
    for found, expected in zip(zip(*parts, strict=True), whole, strict=True):
        assert torch.equal(torch.cat(found), expected)
    empty = draw_share((0, 0), 1, alpha, KEY)  # a process without a row of the last batch
    x, targets = mix(images[empty.rows], labels[empty.rows], 4, empty)
    assert len(x) == len(targets) == 0


def test_the_mixup_factor_follows_the_beta_distribution_and_depends_only_on_the_key() -> None:
    x, labels = torch.zeros(2, 3, 1, 1), torch.tensor([0, 1])
    firsts = []
    for step in range(4000):
        _, targets = mixed_whole(x, labels, 2, 0.4, (0, 0, step))
        firsts.append(float(targets[0, 0]))
    blended = [share for share in firsts if share < 1]  # half of the permutations of two images do not blend them
    assert 0.4 < len(blended) / len(firsts) < 0.6
    expected = np.random.default_rng(0).beta(0.4, 0.4, 200_000)
    assert np.std(blended) == pytest.approx(np.std(expected), abs=0.02)
    assert np.mean(blended) == pytest.approx(0.5, abs=0.03)
    x, labels = torch.zeros(9, 3, 1, 1), torch.arange(9)
    assert torch.equal(mixed_whole(x, labels, 9, 0.4, KEY)[1], mixed_whole(x, labels, 9, 0.4, KEY)[1])
    for other in ((4, 1, 4), (3, 2, 4), (3, 1, 5)):
        assert not torch.equal(mixed_whole(x, labels, 9, 0.4, KEY)[1], mixed_whole(x, labels, 9, 0.4, other)[1])
