"""torchvision's file: the version answers as its module does; nothing but weights is unpickled."""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_store.errors import Fc7Error, ImportFormatError
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from model_store.training.importers.imported_net import ImportedNet
from model_store.training.importers.labels import labels_for
from model_store.training.importers.publish import Imported, publish_import
from model_store.training.importers.torchvision import read_torchvision
from service.cli.main import app
from tests.support import weight_files as files

CLASSES = 5


def sharpen(net: nn.Module) -> nn.Module:
    """Scale the last layer, so that probabilities are neither equal nor all in one class."""
    _, fc7 = files.torchvision_answers(net, files.pictures(2))
    last = net.get_submodule("classifier.6")
    assert isinstance(last, nn.Linear)
    with torch.no_grad():
        last.weight.mul_(2 / (fc7 @ last.weight.T).std())
    return net


@pytest.fixture(scope="module")
def net() -> nn.Module:
    torch.manual_seed(11)
    return sharpen(files.torchvision_alexnet(CLASSES, (8, 12, 8, 8, 6), 24))


@pytest.fixture
def saved(tmp_path: Path, net: nn.Module) -> Path:
    path = tmp_path / "alexnet-owt-7be5be79.pth"
    torch.save(net.state_dict(), path)
    return path


def read(path: Path) -> ImportedNet:
    return read_torchvision(path, layers=files.SMALL_OWT)


def publish(net: ImportedNet, home: Path) -> Imported:
    return publish_import(net, ModelStore(home), labels_for(net.architecture.classes))


def assert_answers_as(imported: Imported, net: nn.Module) -> None:
    rgb = files.pictures(4)
    runner = Runner(imported.artifact, RunnerOptions(device="cpu"))
    found = runner.run(rgb)
    runner.close()
    probabilities, fc7 = (value.numpy() for value in files.torchvision_answers(net, rgb))
    assert probabilities.std() > 0.01
    np.testing.assert_allclose(found.probabilities, probabilities, atol=1e-5)
    np.testing.assert_allclose(found.fc7, fc7, atol=1e-5 * fc7.max())


def test_a_version_answers_as_torchvisions_module_with_its_transforms(
    tmp_path: Path, saved: Path, net: nn.Module
) -> None:
    imported = publish(read(saved), tmp_path)
    assert_answers_as(imported, net)
    manifest = imported.artifact.manifest
    assert (manifest.name, manifest.architecture) == ("alexnet-owt-7be5be79", "owt")
    assert "not the paper's" in manifest.recipe["remarks"][0]
    assert ".485 .456 .406" in manifest.recipe["preprocessing"]


def test_every_form_that_people_save_is_read(tmp_path: Path, net: nn.Module) -> None:
    state = net.state_dict()
    forms = {
        "older.pth": state,
        "wrapped.pth": {"model": state, "epoch": 3},
        "parallel.pth": {"state_dict": {f"module.{name}": value for name, value in state.items()}},
        "half.pth": {name: value.double() for name, value in state.items()},
    }
    wanted = read_state(tmp_path / "plain.pth", state)
    for name, content in forms.items():
        path = tmp_path / name
        torch.save(content, path, _use_new_zipfile_serialization=name != "older.pth")
        for key, value in read(path).weights.items():
            torch.testing.assert_close(value, wanted.weights[key])
    save_file(state, tmp_path / "net.safetensors")
    assert read(tmp_path / "net.safetensors").weights.keys() == wanted.weights.keys()


def read_state(path: Path, state: dict[str, torch.Tensor]) -> ImportedNet:
    torch.save(state, path)
    return read(path)


def test_the_whole_net_is_imported_by_its_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(12)
    whole = sharpen(files.torchvision_alexnet(1000))
    assert sum(value.numel() for value in whole.parameters()) == 61_100_840
    path = tmp_path / "weights.bin"  # the content tells what it is, not the name
    torch.save(whole.state_dict(), path)
    app(["import", "torchvision", str(path), "--name", "owt", "--home", str(tmp_path)], standalone_mode=False)
    assert "ImageNet's 1,000 class names" in capsys.readouterr().out
    store = ModelStore(tmp_path)
    artifact = store.active_artifact(verify=False)
    assert artifact.id == "owt:1"
    assert artifact.labels[0].startswith("tench")
    runner = Runner(artifact, RunnerOptions(device="cpu"))
    rgb = files.pictures(2)
    found = runner.run(rgb)
    runner.close()
    wanted = files.torchvision_answers(whole, rgb)
    np.testing.assert_allclose(found.probabilities, wanted[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(found.fc7, wanted[1].numpy(), atol=1e-5 * float(wanted[1].max()))


# ---- bad files ----


class Trap:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


def refusal(path: Path) -> str:
    with pytest.raises(ImportFormatError) as caught:
        read(path)
    assert str(path) in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_but_weights_is_unpickled(tmp_path: Path, net: nn.Module, zipped: bool) -> None:
    path, sprung = tmp_path / "trap.pth", tmp_path / "sprung"
    torch.save({**net.state_dict(), "x": Trap(sprung)}, path, _use_new_zipfile_serialization=zipped)
    assert "which is not unpickled" in refusal(path)
    path.write_bytes(pickle.dumps(Trap(sprung)))
    refusal(path)
    assert not sprung.exists()


def test_a_whole_module_names_the_mend(tmp_path: Path, net: nn.Module) -> None:
    torch.save(net, tmp_path / "module.pth")
    assert "torch.save(model.state_dict(), FILE)" in refusal(tmp_path / "module.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_a_file_that_was_cut_anywhere_is_refused(tmp_path: Path, net: nn.Module, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for place in (1, 2, 10, 200, 2000, len(data) // 2, len(data) - 300, len(data) - 1):
        path.write_bytes(data[:place])
        with pytest.raises(Fc7Error):
            read(path)
    save_file(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5])
    assert "cut short or broken" in refusal(path)


def test_shapes_and_names_are_compared(tmp_path: Path, net: nn.Module) -> None:
    state = net.state_dict()
    path = tmp_path / "net.pth"
    torch.save({**state, "features.8.weight": torch.zeros(8, 8, 5, 5)}, path)
    text = refusal(path)
    assert "the weight of layer features.8 (our conv4) has the shape 8x8x5x5, and owt has 8x8x3x3" in text
    torch.save({name: value for name, value in state.items() if name != "classifier.1.bias"}, path)
    assert "it has no classifier.1.bias" in refusal(path)
    torch.save({**state, "classifier.9.bias": torch.zeros(1)}, path)
    assert "has no classifier.9.bias" in refusal(path)
    torch.save([1, 2], path)
    assert "it holds a list" in refusal(path)
    torch.save({"epoch": 3}, path)
    assert "its entry epoch is a int, not a tensor" in refusal(path)


def test_values_that_are_not_finite_are_refused(tmp_path: Path, net: nn.Module) -> None:
    state = {**net.state_dict(), "classifier.4.bias": torch.full((4096,), torch.inf)}
    torch.save(state, tmp_path / "net.pth")
    assert "layer classifier.4 (our fc7) has values that are not finite" in refusal(tmp_path / "net.pth")


def test_archives_that_are_not_torchs_are_refused(tmp_path: Path, saved: Path) -> None:
    other = tmp_path / "other.pth"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "not one that PyTorch wrote" in refusal(other)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
        archive.writestr("archive/data/99", bytes(50_000_000))
    assert "more than it has" in refusal(bomb)


def test_other_files_are_sent_to_their_command(tmp_path: Path) -> None:
    weights = files.draw_weights(files.SMALL_ALEXNET, 3)
    zoo = files.write_zoo_model(tmp_path / "zoo.pth", weights)
    assert f"it is an ONNX model, not a PyTorch file. For that: fc7 import onnx {zoo}" in refusal(zoo)
    caffe = files.write_caffemodel(tmp_path / "net.pth", weights)
    assert f"For that: fc7 import caffe {caffe}" in refusal(caffe)
