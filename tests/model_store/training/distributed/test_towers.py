"""Two processes with one tower each: the same result as the grouped net, and the bytes that they send."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from model_store.errors import RecipeError
from model_store.training.distributed.group import Group, join_group
from model_store.training.distributed.towers import TowerParallel, require_towers
from model_store.training.nets.alexnet import AlexNet, initialise
from model_store.training.optim import build_optimizer, set_rate
from model_store.training.recipe import Recipe, load_recipe
from model_store.training.runs.run import MODEL_FILE, WEIGHTS_PREFIX, RunInfo, find_run, read_metrics, read_tensors
from model_store.training.train import main
from tests.support.processes import run_together
from tests.support.training.class_folders import write_class_folders

RECIPE = replace(load_recipe("original"), width=1 / 16, initialisation="he", input_scale=1 / 64)
CLASSES = 7  # fc8 is not split by neurons, so an odd number works
IMAGES = 3
STEPS = 3


def batch() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn((IMAGES, 3, 224, 224), generator=generator) * 60, torch.tensor([0, 5, 6])


def info() -> RunInfo:
    return RunInfo("t", RECIPE, RECIPE.architecture(CLASSES), (), "", "", 0, 0, 5, None, "", {})


def one_process() -> dict[str, torch.Tensor]:
    """Return outputs, gradients and trained weights of the grouped net, with dropout."""
    net: AlexNet = AlexNet(RECIPE.architecture(CLASSES)).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    initialise(net, RECIPE.initialisation, torch.Generator().manual_seed(5))
    optimizer = build_optimizer(net, RECIPE)
    torch.manual_seed(5)
    x, labels = batch()
    out = {"logits": net.eval()(x).detach()}
    net.train()
    for step in range(STEPS):
        set_rate(optimizer, 0.01 / (step + 1))
        optimizer.zero_grad()
        functional.cross_entropy(net(x), labels).backward()  # type: ignore[no-untyped-call]
        if not step:
            out |= {f"gradient.{name}": weight.grad.clone() for name, weight in net.named_parameters()}  # type: ignore[union-attr]
        optimizer.step()
    return out | {f"weight.{name}": weight.detach() for name, weight in net.named_parameters()}


def one_tower(folder: Path) -> None:
    """Compute the same in each of two processes. The first one saves the results for the whole net."""
    with join_group(os.environ, "cpu") as group:
        scheme = TowerParallel(RECIPE.architecture(CLASSES), RECIPE, group)
        scheme.initialise(info(), None)
        x, labels = batch()
        out = {"logits": scheme.module.eval()(x).detach()}
        forward = scheme.bytes_sent()
        scheme.module.train()
        for step in range(STEPS):
            set_rate(scheme.optimizer, 0.01 / (step + 1))
            scheme.optimizer.zero_grad()
            scheme.backward(functional.cross_entropy(scheme.logits(x, None), labels))
            if not step:
                sent = scheme.bytes_sent()
                for name, weight in scheme.tower.named_parameters():
                    assert weight.grad is not None
                    out[f"gradient.{name}"] = scheme.tower.gather(name, weight.grad)
            scheme.optimizer.step()
        out |= {f"weight.{name}": scheme.tower.gather(name, weight) for name, weight in scheme.tower.named_parameters()}
        assert sum(weight.numel() for weight in scheme.tower.parameters()) < 0.52 * sum(
            value.numel() for key, value in out.items() if key.startswith("weight.")
        )  # each process has half of the net
        if group.first:
            torch.save(out, folder / "out.pt")
            (folder / "sent.json").write_text(json.dumps([forward, sent]))


def test_two_towers_equal_the_grouped_net_and_communicate_at_four_layers(tmp_path: Path) -> None:
    run_together(2, ["-m", "tests.model_store.training.distributed.test_towers", str(tmp_path)])
    found, expected = torch.load(tmp_path / "out.pt"), one_process()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        difference = float((found[name] - value).abs().max() / value.abs().max())
        assert difference < 2e-5, (name, difference)
    forward, sent = json.loads((tmp_path / "sent.json").read_text())
    maps = {layer.name: layer for layer in RECIPE.architecture(CLASSES).maps()}
    half = {
        "conv3": maps["pool2"].channels // 2 * 13 * 13,
        "fc6": maps["pool5"].channels // 2 * 6 * 6,
        "fc7": maps["fc6"].channels // 2,
    }
    assert forward == {name: 4 * IMAGES * count for name, count in half.items()} | {"fc8": 4 * IMAGES * CLASSES}
    # The backward pass sends the same again, except for the logits.
    assert sent == {name: 8 * IMAGES * count for name, count in half.items()} | {"fc8": 4 * IMAGES * CLASSES}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("towers")
    text = 'width = 0.03125\ninput_scale = 0.015625\ninitialisation = "he"\nnormalisation = "towers"\nepochs = 2\n'
    (root / "trial.toml").write_text(text + 'batch_size = 5\nschedule = "constant"\nprecision = "float32"\n')
    return write_class_folders(root / "data")


@pytest.mark.slow
def test_a_run_with_two_towers_gives_the_result_of_one_process_and_reports_sent_bytes(
    data: Path, tmp_path: Path
) -> None:
    arguments = [
        "--data",
        str(data),
        "--recipe",
        str(data.parent / "trial.toml"),
        "--home",
        str(tmp_path),
        "--experiment",
    ]
    assert main([*arguments, "--name", "one"]) == 0
    output, silent = run_together(2, ["-m", "model_store.training.train", *arguments, "--name", "two", "--towers"])
    assert silent == ""
    one, two = (read_tensors(find_run(tmp_path, name) / MODEL_FILE, WEIGHTS_PREFIX) for name in ("one", "two"))
    assert one.keys() == two.keys()
    assert all(float((two[name] - one[name]).abs().max()) < 1e-5 for name in one)
    epochs = [line for line in read_metrics(find_run(tmp_path, "two")) if line["kind"] == "epoch"]
    sent = {key: value for key, value in epochs[0].items() if key.startswith("sent_")}
    assert list(sent) == ["sent_conv3", "sent_fc6", "sent_fc7", "sent_fc8"]
    assert all(epochs[1][key] == value for key, value in sent.items())  # of an epoch, without validation
    assert f"conv3 {sent['sent_conv3'] / 18:,.0f}" in output
    assert [line["val_error"] for line in epochs] == [
        line["val_error"] for line in read_metrics(find_run(tmp_path, "one")) if line["kind"] == "epoch"
    ]


def test_unsupported_towers_are_rejected(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(RecipeError, match=r"norm1 .*--set normalisation=towers"):
        require_towers(Recipe().architecture(3), Group(world=2))
    with pytest.raises(RecipeError, match=r"there are 3\. Use: torchrun"):
        require_towers(RECIPE.architecture(3), Group(world=3))
    arguments = ["--data", str(data), "--home", str(tmp_path), "--recipe", "original", "--name", "alone", "--towers"]
    assert main(arguments) == 1
    assert "torchrun --nproc-per-node 2" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


if __name__ == "__main__":
    one_tower(Path(sys.argv[1]))
