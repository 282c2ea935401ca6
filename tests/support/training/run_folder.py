"""A finished training run and its class folders, created in milliseconds: a small real net with random weights.

The net gives confident and different answers for different images, so that an incorrect export is detected.
Out of scope: training.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors.torch import save_file

from model_store.training.nets.alexnet import AlexNet, Architecture, Conv, Dropout, Hidden, Norm, Pool, initialise
from model_store.training.recipe import Recipe
from model_store.training.runs.run import MODEL_FILE, WEIGHTS_PREFIX, RunInfo, write_info, write_statistics
from model_store.training.statistics import Statistics

CLASSES = ("blue", "green", "red")
# Layers of every kind in the paper's order (edge, towers, both norms), with few kernels, and fc7 at its full size.
SMALL_LAYERS = (
    Conv("conv1", 8, 11, stride=4, edge=3),
    Norm("norm1", alpha=0.01),
    Pool("pool1"),
    Conv("conv2", 12, 5, padding=2, towers=2),
    Norm("norm2", alpha=0.02, k=1.5, towers=2),
    Pool("pool2"),
    Conv("conv3", 8, 3, padding=1),
    Pool("pool5"),
    Hidden("fc6", 24),
    Hidden("fc7", 4096),
)


def small_architecture(dropout: Dropout = "paper", input_scale: float = 1 / 64, classes: int = 3) -> Architecture:
    """Return the architecture of the small net."""
    return Architecture(classes, SMALL_LAYERS, dropout=dropout, input_scale=input_scale)


def small_net(architecture: Architecture, seed: int = 0) -> AlexNet:
    """Return a net with random weights, in evaluation mode, whose probabilities are far from uniform."""
    net = AlexNet(architecture)
    random = torch.Generator().manual_seed(seed)
    initialise(net, "he", random)
    with torch.no_grad():
        for name, parameter in net.named_parameters():
            if name.endswith("bias"):
                parameter.normal_(0, 0.1, generator=random)
        net.get_parameter("conv1.weight").mul_(1 / (64 * architecture.input_scale))
        net.fc8.weight.normal_(0, 0.3, generator=random)
    return net.eval()


def write_pictures(root: Path, split: str = "val", images: int = 4, side: int = 256, seed: int = 7) -> None:
    """Write `<root>/<split>/<class>/<n>.png`: smooth colored noise that differs from image to image."""
    random = np.random.default_rng([seed, len(split)])
    for label, name in enumerate(CLASSES):
        folder = root / split / name
        folder.mkdir(parents=True)
        for number in range(images):
            coarse = random.integers(0, 120, (9, 9, 3), dtype=np.uint8)
            coarse[..., 2 - label] += 100
            picture = Image.fromarray(coarse).resize((side, side), Image.Resampling.BICUBIC)
            picture.save(folder / f"{number}.png")


def write_run(home: Path, data: Path, architecture: Architecture | None = None, name: str = "small") -> Path:
    """Write a finished run of the small net into `home`/runs, and return its folder."""
    architecture = architecture or small_architecture()
    folder = home / "runs" / f"{name}-20260102-030405"
    folder.mkdir(parents=True)
    write_info(
        folder,
        RunInfo(
            name=name,
            recipe=Recipe(name="trial", dropout=architecture.dropout, input_scale=architecture.input_scale),
            architecture=architecture,
            classes=CLASSES,
            data=str(data),
            data_hash="0" * 64,
            train_images=12,
            val_images=12,
            seed=0,
            parent=None,
            created="2026-01-02T03:04:05+00:00",
            versions={},
        ),
    )
    mean = np.random.default_rng(3).uniform(60, 160, (256, 256, 3)).astype(np.float32)
    write_statistics(folder, Statistics(mean, np.ones(3, np.float32), np.eye(3, dtype=np.float32)))
    save_file(
        {f"{WEIGHTS_PREFIX}{key}": value for key, value in small_net(architecture).state_dict().items()},
        folder / MODEL_FILE,
    )
    return folder
