"""`fc7 train`: the device it trains on, and the name of the run."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest

from model_store.decoder.limits import DecodeLimits
from model_store.errors import CheckpointError
from model_store.training import device as devices
from model_store.training import train as training
from model_store.training.train import Request
from service.errors import SettingError
from tests.service.cli.helpers import invoke


@pytest.fixture
def requests(monkeypatch: pytest.MonkeyPatch) -> list[Request]:
    """Collect the requests to train instead of training. Every device exists."""
    collected: list[Request] = []

    def collect(request: Request, _environment: Mapping[str, str]) -> int:
        collected.append(request)
        return 0

    monkeypatch.setattr(training, "run_command", collect)
    monkeypatch.setattr(devices, "training_device", lambda _name: None)
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


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("photos", "photos"),
        ("My photos (2026)", "My-photos-2026"),
        ("Küche/", "Kuche"),
        (".cache", "cache"),
        ("写真", "model"),
        ("x" * 80, "x" * 64),
        ("birds.csv", "birds"),
        ("birds.v2/.", "birds.v2"),
    ],
)
def test_the_name_is_that_of_the_source(tmp_path: Path, requests: list[Request], source: str, name: str) -> None:
    path = tmp_path / source
    if path.suffix == ".csv":
        path.write_text("path,label\n")
    else:
        path.mkdir(parents=True)
    done = invoke(tmp_path / "home", "train", f"{tmp_path}/{source}")
    assert done.exit_code == 0, done.output
    assert requests.pop().name == name
    assert f"named {name}." in done.stderr
    assert "named" not in invoke(tmp_path / "home", "train", path, "--name", "a").stderr
    invoke(tmp_path / "home", "train", path, "--resume")
    assert requests.pop().name == name


def test_a_run_to_resume_must_be_named(tmp_path: Path, requests: list[Request]) -> None:
    refused = invoke(tmp_path, "train", "--resume")
    assert (refused.exit_code, requests) == (2, [])
    assert "name of the run to resume" in " ".join(refused.output.replace("│", "").split())


def test_an_unknown_device_is_rejected(tmp_path: Path, requests: list[Request]) -> None:
    refused = invoke(tmp_path, "train", "--name", "a", "--device", "tpu")
    assert isinstance(refused.exception, SettingError)
    assert "auto, cpu, cuda or cuda:N" in str(refused.exception)
    assert requests == []


def test_the_home_is_checked_before_an_archive_is_unpacked_or_weights_are_downloaded(
    tmp_path: Path, requests: list[Request]
) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "set.zip").touch()
    for more in ([], ["--from", "imagenet"]):
        refused = invoke(tmp_path / "file" / "home", "train", tmp_path / "set.zip", *more)
        assert isinstance(refused.exception, CheckpointError)
        assert "home/runs cannot be written: Not a directory. Choose another folder with --home" in str(
            refused.exception
        )
    assert requests == []


def test_the_limits_of_decoding_are_those_of_serving(tmp_path: Path, requests: list[Request]) -> None:
    (tmp_path / "photos").mkdir()
    for variables, pixels in (({}, DecodeLimits().pixels), ({"FC7_MAX_PIXELS": "200000000"}, 200_000_000)):
        done = invoke(tmp_path / "home", "train", tmp_path / "photos", **variables)
        assert done.exit_code == 0, done.output
        limits = requests.pop().limits
        assert limits is not None
        assert limits.pixels == pixels
