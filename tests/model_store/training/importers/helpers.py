"""Publish imported nets, compare their outputs with the expected ones, and collect error messages."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from model_store.artifact import Artifact
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.errors import ImportFormatError
from model_store.training.importers.caffe import IMAGENET_MEAN_BGR
from model_store.training.importers.imported_net import ImportedNet
from model_store.training.importers.labels import labels_for
from model_store.training.importers.publish import ImportResult, publish_import
from service.cli.main import app

IMAGENET_COLOR = np.array(IMAGENET_MEAN_BGR, np.float32)[:, None, None]  # BGR
Outputs = tuple[NDArray[np.float32], NDArray[np.float32]]  # probabilities, fc7


def publish(net: ImportedNet, home: Path) -> ImportResult:
    return publish_import(net, ModelStore(home), labels_for(net.architecture.classes))


def served_outputs(artifact: Artifact, rgb: NDArray[np.uint8]) -> Outputs:
    """Run the version as it is served."""
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    try:
        outputs = runner.run(rgb)
        return outputs.probabilities, outputs.fc7
    finally:
        runner.close()


def published_outputs(net: ImportedNet, home: Path, rgb: NDArray[np.uint8]) -> Outputs:
    return served_outputs(publish(net, home).artifact, rgb)


def assert_outputs_match(actual: Outputs, expected: tuple[torch.Tensor, torch.Tensor]) -> None:
    probabilities, fc7 = (value.numpy() for value in expected)
    assert probabilities.std() > 0.01  # otherwise the comparison would be meaningless
    assert probabilities.max() < 0.999
    np.testing.assert_allclose(actual[0], probabilities, atol=1e-5)
    np.testing.assert_allclose(actual[1], fc7, atol=1e-5 * fc7.max())


def import_by_command(home: Path, kind: str, file: Path, *options: str) -> Artifact:
    """Run `fc7 import` and return the active version."""
    app(["import", kind, str(file), *options, "--home", str(home)], standalone_mode=False)
    return ModelStore(home).active_artifact(verify=False)


def error_message(read: Callable[[Path], object], path: Path) -> str:
    """Return the message of the ImportFormatError, after checking that it names the file."""
    with pytest.raises(ImportFormatError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


class TorchvisionAlexNet(nn.Module):
    """The module of `torchvision_alexnet` with torchvision's forward pass, for exporters."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.features = net.get_submodule("features")
        self.avgpool = net.get_submodule("avgpool")
        self.classifier = net.get_submodule("classifier")
        self.eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return logits of normalized images, float [n, 3, 224, 224]."""
        logits: torch.Tensor = self.classifier(torch.flatten(self.avgpool(self.features(x)), 1))
        return logits
