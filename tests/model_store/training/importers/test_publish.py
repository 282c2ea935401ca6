"""Publishing an imported net: what its manifest records, and which nets are not published."""

from __future__ import annotations

from pathlib import Path

import pytest

from model_store.store import ModelStore
from model_store.training.errors import ImportFormatError
from model_store.training.importers.caffe import read_caffemodel
from model_store.training.nets.alexnet import Hidden
from tests.model_store.training.importers.helpers import publish
from tests.support.training import weight_files as files


def test_the_manifest_records_the_origin_of_the_net(tmp_path: Path) -> None:
    weights = files.random_weights(files.SMALL_ALEXNET, 7)
    path = files.write_caffemodel(tmp_path / "bvlc_alexnet.caffemodel", weights)
    net = read_caffemodel(path, layers=files.SMALL_ALEXNET)
    manifest = publish(net, tmp_path).artifact.manifest
    assert (manifest.name, manifest.architecture) == ("bvlc_alexnet", "bvlc_alexnet")
    assert manifest.recipe["imported"] == {
        "kind": "caffe",
        "file": "bvlc_alexnet.caffemodel",
        "sha256": net.source.sha256,
        "size": path.stat().st_size,
    }
    assert "227x227" in manifest.recipe["preprocessing"]
    assert manifest.recipe["architecture"]["layers"][0]["edge"] == 3
    assert manifest.metrics["parity"]["probabilities"] <= 1e-5


def test_a_net_with_another_size_of_fc7_is_not_published(tmp_path: Path) -> None:
    layers = (*files.SMALL_ALEXNET[:-1], Hidden("fc7", 16))
    path = files.write_caffemodel(tmp_path / "net.caffemodel", files.random_weights(layers, 7))
    net = read_caffemodel(path, layers=layers)
    with pytest.raises(ImportFormatError, match="4096 neurons in fc7"):
        publish(net, tmp_path)
    assert ModelStore(tmp_path).list() == []
