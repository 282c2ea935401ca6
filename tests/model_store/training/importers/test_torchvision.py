"""torchvision's file: the version outputs what torchvision's module outputs, and only weights are unpickled."""

from __future__ import annotations

import argparse
import contextlib
import copy
import pickle
import shlex
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from model_store.errors import Fc7Error
from model_store.store import ModelStore
from model_store.training.evaluate import SplitImages
from model_store.training.importers.imported_net import ImportedNet
from model_store.training.importers.labels import labels_for
from model_store.training.importers.publish import publish_import
from model_store.training.importers.torchvision import read_torchvision
from tests.model_store.training.importers.helpers import (
    TorchvisionAlexNet,
    assert_outputs_match,
    error_message,
    import_by_command,
    publish,
    served_outputs,
)
from tests.support.training import weight_files as files
from tests.support.training.class_folders import write_class_folders

CLASSES = 5


def sharpen(net: nn.Module) -> nn.Module:
    """Scale the last layer so that probabilities are neither all equal nor all in one class."""
    _, fc7 = files.torchvision_outputs(net, files.random_images(2))
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


def test_outputs_match_torchvisions_module_with_its_transforms(tmp_path: Path, saved: Path, net: nn.Module) -> None:
    imported = publish(read(saved), tmp_path)
    rgb = files.random_images(4)
    assert_outputs_match(served_outputs(imported.artifact, rgb), files.torchvision_outputs(net, rgb))
    manifest = imported.artifact.manifest
    assert (manifest.name, manifest.architecture) == ("alexnet-owt-7be5be79", "owt")
    assert "not the paper's" in manifest.recipe["remarks"][0]
    assert ".485 .456 .406" in manifest.recipe["preprocessing"]


def sequential_head(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.replace("classifier.6.", "classifier.6.0."): value for name, value in state.items()}


def prefixed(state: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def test_every_common_form_of_a_state_dict_is_read(tmp_path: Path, net: nn.Module) -> None:
    state = net.state_dict()
    ema = {"n_averaged": torch.tensor(9), **prefixed({k: v + 1 for k, v in state.items()}, "module.")}
    forms = {
        "older.pth": state,
        "wrapped.pth": {"model": state, "epoch": 3},
        "parallel.pth": {"state_dict": prefixed(state, "module.")},
        "features in parallel.pth": {
            "state_dict": {name.replace("features.", "features.module."): value for name, value in state.items()},
            "best_acc1": torch.tensor(56.5),
            "optimizer": {"state": {0: {"momentum_buffer": torch.zeros(3)}}, "param_groups": [{"lr": 0.01}]},
        },
        "compiled.pth": prefixed(state, "_orig_mod."),
        "compiled and parallel.pth": {"model": prefixed(state, "module._orig_mod.")},
        "lightning.ckpt": {
            "state_dict": {"criterion.weight": torch.ones(5), **prefixed(state, "model.")},
            "hyper_parameters": {"lr": 0.1},
            "callbacks": {},
        },
        "tutorial.pth": {"epoch": 5, "model_state_dict": state, "optimizer_state_dict": {"state": {}}, "loss": 0.4},
        "head.pth": sequential_head(state),
        "own classifier.pth": {
            name.replace("classifier.1.", "classifier.0.").replace("classifier.4.", "classifier.3."): value
            for name, value in state.items()
        },
        "reference.pth": {
            "model_ema": ema,
            "model": state,
            "args": argparse.Namespace(lr=0.01, output_dir=Path("out"), device="cuda"),
            "best": np.float64(56.5),
            "history": np.array([1.0, 2.0]),
        },
        "averaged only.pth": {"ema": prefixed(state, "module.")},
        "double.pth": {name: value.double() for name, value in state.items()},
    }
    expected = read_state(tmp_path / "plain.pth", state)
    for name, content in forms.items():
        path = tmp_path / name
        torch.save(content, path, _use_new_zipfile_serialization=name != "older.pth")
        for key, value in read(path).weights.items():
            torch.testing.assert_close(value, expected.weights[key], msg=name)
    save_file(state, tmp_path / "net.safetensors")
    assert read(tmp_path / "net.safetensors").weights.keys() == expected.weights.keys()


def test_remarks_say_which_weights_of_a_file_were_imported(tmp_path: Path, net: nn.Module) -> None:
    state, path = net.state_dict(), tmp_path / "net.pth"
    torch.save({"ema_model": state, "model": state}, path)
    assert "The file also has ema_model. Only model was imported." in read(path).remarks
    torch.save({"state_dict": {**prefixed(state, "net."), "head.weight": torch.ones(2, 5)}}, path)
    assert any("outside of state_dict, net.*" in remark and "head.weight" in remark for remark in read(path).remarks)


def read_state(path: Path, state: dict[str, torch.Tensor]) -> ImportedNet:
    torch.save(state, path)
    return read(path)


@pytest.mark.slow
def test_the_command_imports_the_full_net(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(12)
    full = sharpen(files.torchvision_alexnet(1000))
    assert sum(value.numel() for value in full.parameters()) == 61_100_840
    path = tmp_path / "weights.bin"  # the kind follows from the content, not from the name
    torch.save(full.state_dict(), path)
    artifact = import_by_command(tmp_path, "torchvision", path, "--name", "owt")
    assert "ImageNet's 1,000 class names" in capsys.readouterr().out
    assert artifact.id == "owt:1"
    assert artifact.labels[0].startswith("tench")
    rgb = files.random_images(2)
    probabilities, fc7 = served_outputs(artifact, rgb)
    expected = files.torchvision_outputs(full, rgb)
    np.testing.assert_allclose(probabilities, expected[0].numpy(), atol=1e-5)
    np.testing.assert_allclose(fc7, expected[1].numpy(), atol=1e-5 * float(expected[1].max()))


class Trap:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return (Path.touch, (self.path,))


@pytest.mark.parametrize("zipped", [True, False])
def test_only_weights_are_unpickled(tmp_path: Path, net: nn.Module, zipped: bool) -> None:
    path, created = tmp_path / "trap.pth", tmp_path / "created"
    torch.save({**net.state_dict(), "x": Trap(created)}, path, _use_new_zipfile_serialization=zipped)
    assert "which is not unpickled" in error_message(read, path)
    path.write_bytes(pickle.dumps(Trap(created)))
    error_message(read, path)
    assert not created.exists()


class Options:
    """Settings of a training script, which fc7 does not know."""


@pytest.mark.parametrize("kind", ["module", "parallel", "wrapped", "traced", "scripted", "half"])
def test_weights_inside_of_other_objects_are_read_without_creating_them(
    tmp_path: Path, net: nn.Module, kind: str
) -> None:
    path, module, created = tmp_path / "net.pth", TorchvisionAlexNet(net), tmp_path / "created"
    with warnings.catch_warnings(action="ignore"):
        match kind:
            case "traced":
                torch.jit.trace(module, torch.zeros(1, 3, 224, 224)).save(path)  # type: ignore[no-untyped-call]
            case "scripted":
                torch.jit.script(nn.Sequential(module)).save(path)  # type: ignore[no-untyped-call]
            case "wrapped":
                torch.save({"epoch": 3, "state_dict": net.state_dict(), "options": Options()}, path)
            case "parallel":
                torch.save({"model": nn.DataParallel(module), "options": Options()}, path)
            case "half":
                torch.save(copy.deepcopy(module).half(), path)
            case _:
                torch.save(module, path)
    found, expected = read(path), read_state(tmp_path / "plain.pth", net.state_dict())
    assert found.weights.keys() == expected.weights.keys()
    for name, weight in expected.weights.items():
        torch.testing.assert_close(found.weights[name], weight, atol=2e-3 if kind == "half" else 0, rtol=0)
    with zipfile.ZipFile(path) as source, zipfile.ZipFile(tmp_path / "trap.pth", "w") as archive:
        call = b"cposix\nmkdir\n(X" + len(str(created)).to_bytes(4, "little") + str(created).encode() + b"tR0"
        for entry in source.infolist():
            content = source.read(entry)
            if entry.filename.endswith("/data.pkl"):
                content = content[:2] + call + content[2:]
            archive.writestr(entry.filename, content)
    assert read(tmp_path / "trap.pth").weights.keys() == expected.weights.keys()
    assert not created.exists()


def test_a_tensor_outside_of_its_storage_is_not_read(tmp_path: Path, net: nn.Module) -> None:
    torch.save(TorchvisionAlexNet(net), tmp_path / "net.pth")
    with zipfile.ZipFile(tmp_path / "net.pth") as source, zipfile.ZipFile(tmp_path / "cut.pth", "w") as archive:
        for entry in source.infolist():
            content = source.read(entry)
            archive.writestr(entry.filename, content[:4] if "/data/" in entry.filename else content)
    assert "which is not unpickled" in error_message(read, tmp_path / "cut.pth")


@pytest.mark.parametrize("kind", ["older module", "older wrapped", "exported"])
def test_the_command_in_the_error_saves_weights_that_can_be_imported(tmp_path: Path, net: nn.Module, kind: str) -> None:
    path, module = tmp_path / "it's.pth", TorchvisionAlexNet(net)
    match kind:
        case "exported":
            path = path.with_suffix(".pt2")
            torch.export.save(torch.export.export(module, (torch.zeros(1, 3, 224, 224),)), path)
        case "older wrapped":
            content = {"state_dict": net.state_dict(), "options": Options()}
            torch.save(content, path, _use_new_zipfile_serialization=False)
        case _:
            torch.save(module, path, _use_new_zipfile_serialization=False)
    command = error_message(read, path).partition("import the result: ")[2].rstrip(".")
    with warnings.catch_warnings(action="ignore"), contextlib.chdir(tmp_path):
        exec(shlex.split(command)[2])  # the command of the message
    assert (
        read(tmp_path / "weights.pth").weights.keys()
        == read_state(tmp_path / "plain.pth", net.state_dict()).weights.keys()
    )


@pytest.mark.parametrize("zipped", [True, False])
def test_a_truncated_file_is_rejected_wherever_it_ends(tmp_path: Path, net: nn.Module, zipped: bool) -> None:
    path = tmp_path / "net.pth"
    torch.save(net.state_dict(), path, _use_new_zipfile_serialization=zipped)
    data = path.read_bytes()
    for end in (1, 2, 10, 200, 2000, len(data) // 2, len(data) - 300, len(data) - 1):
        path.write_bytes(data[:end])
        with pytest.raises(Fc7Error):
            read(path)
    save_file(net.state_dict(), path)
    path.write_bytes(path.read_bytes()[:-5])
    assert "truncated or damaged" in error_message(read, path)


def test_wrong_shapes_and_names_are_rejected(tmp_path: Path, net: nn.Module) -> None:
    state = net.state_dict()
    path = tmp_path / "net.pth"
    torch.save({**state, "features.8.weight": torch.zeros(8, 8, 5, 5)}, path)
    text = error_message(read, path)
    assert "the weight of layer features.8 (conv4) has the shape 8x8x5x5, but owt has 8x8x3x3" in text
    torch.save({name: value for name, value in state.items() if name != "classifier.1.bias"}, path)
    assert "it has no classifier.1.bias" in error_message(read, path)
    torch.save({**state, "classifier.9.bias": torch.zeros(1)}, path)
    assert "has no classifier.9.bias" in error_message(read, path)
    torch.save([1, 2], path)
    assert "it contains a list" in error_message(read, path)
    torch.save({"epoch": 3}, path)
    assert "it contains no weights by name (it has epoch)" in error_message(read, path)
    torch.save({name.replace("features", "stem"): value for name, value in state.items()}, path)
    assert "its layer stem.0 is not one of torchvision's AlexNet" in error_message(read, path)
    torch.save({**sequential_head(state), "classifier.6.3.weight": torch.zeros(2, 5)}, path)
    assert "its layer classifier.6.0 is not one of torchvision's AlexNet" in error_message(read, path)


def test_values_that_are_not_finite_are_rejected(tmp_path: Path, net: nn.Module) -> None:
    state = {**net.state_dict(), "classifier.4.bias": torch.full((4096,), torch.inf)}
    torch.save(state, tmp_path / "net.pth")
    assert "layer classifier.4 (fc7) has values that are not finite" in error_message(read, tmp_path / "net.pth")


def test_archives_that_pytorch_did_not_write_are_rejected(tmp_path: Path, saved: Path) -> None:
    other = tmp_path / "other.pth"
    with zipfile.ZipFile(other, "w") as archive:
        archive.writestr("readme.txt", "hello")
    assert "that PyTorch did not write" in error_message(read, other)
    bomb = tmp_path / "bomb.pth"
    with zipfile.ZipFile(saved) as source, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        for entry in source.infolist():
            archive.writestr(entry.filename, source.read(entry))
        archive.writestr("archive/data/99", bytes(50_000_000))
    assert "which is more than its size" in error_message(read, bomb)


def test_files_of_another_kind_are_directed_to_their_command(tmp_path: Path) -> None:
    weights = files.random_weights(files.SMALL_ALEXNET, 3)
    zoo = files.write_zoo_model(tmp_path / "zoo.pth", weights)
    assert f"it is an ONNX model, not a PyTorch file. To import it, run: fc7 import onnx {zoo}" in error_message(
        read, zoo
    )
    caffe = files.write_caffemodel(tmp_path / "net.pth", weights)
    assert f"To import it, run: fc7 import caffe {caffe}" in error_message(read, caffe)


def test_bf16_is_measured_on_the_given_photographs(tmp_path: Path, saved: Path) -> None:
    photographs = SplitImages(write_class_folders(tmp_path / "photographs", train=34, val=1), "all")
    store, labels = ModelStore(tmp_path), labels_for(CLASSES)
    artifact = publish_import(read(saved), store, labels, photographs=photographs).artifact
    measured = artifact.manifest.metrics["bf16"]
    assert (measured["images"], measured["views"]) == (105, 10)
