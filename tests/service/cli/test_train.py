"""`fc7 train`: which device it trains on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from model_store.training import train as training
from model_store.training.train import Request
from service.errors import SettingError
from tests.service.cli.helpers import invoke


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Collect the requests to train instead of training."""
    collected: list[Request] = []

    def collect(request: Request, _environment: Mapping[str, str]) -> int:
        collected.append(request)
        return 0

    monkeypatch.setattr(training, "run_command", collect)
    return collected


def test_train_uses_the_device_of_the_settings(tmp_path: Path, requests: list[Request]) -> None:
    for words, device, expected in (
        ([], "", "auto"),
        ([], "cpu", "cpu"),
        (["--device", "cuda:1"], "cpu", "cuda:1"),
    ):
        done = invoke(tmp_path, "train", "--name", "a", *words, FC7_DEVICE=device)
        assert done.exit_code == 0, done.output
        assert requests.pop().device == expected


def test_an_unknown_device_is_rejected(tmp_path: Path, requests: list[Request]) -> None:
    refused = invoke(tmp_path, "train", "--name", "a", "--device", "tpu")
    assert isinstance(refused.exception, SettingError)
    assert "auto, cpu, cuda or cuda:N" in str(refused.exception)
    assert requests == []
