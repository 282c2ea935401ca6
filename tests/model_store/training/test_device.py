"""The choice of the training device."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_store.errors import DeviceUnavailableError
from model_store.training.device import training_device
from model_store.training.train import main
from tests.support.training.class_folders import write_class_folders


def test_an_unavailable_or_invalid_device_is_rejected() -> None:
    assert training_device("cpu") == torch.device("cpu")
    for name in ("cuda:99", "gpu", "cuda:x"):
        with pytest.raises(DeviceUnavailableError, match=name):
            training_device(name)


def test_the_command_takes_the_device_from_its_option_or_from_fc7_device(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = write_class_folders(tmp_path / "data", train=1, val=1)
    arguments = ["--data", str(data), "--home", str(tmp_path), "--name", "device"]
    assert main([*arguments, "--device", "cuda:99"]) == 1
    assert "cuda:99" in capsys.readouterr().err
    monkeypatch.setenv("FC7_DEVICE", "gpu")
    assert main(arguments) == 1
    assert "gpu was requested and cannot be used (valid values are auto, cpu" in capsys.readouterr().err
    monkeypatch.setenv("FC7_DEVICE", "cuda:98")
    assert main([*arguments, "--device", "cuda:99"]) == 1
    assert "cuda:99" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()
