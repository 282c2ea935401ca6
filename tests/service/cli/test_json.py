"""`--json` prints one JSON document on standard output and nothing else there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main

from service.cli.main import app
from tests.service.cli.helpers import call, invoke
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.class_folders import CHANNELS, write_class_folders

# These need a server, labels or another model; their own tests use --json.
ELSEWHERE = {"doctor", "explain", "head fit", "index label", "jobs cancel", "jobs list", "jobs retry", "jobs show"}
COMMANDS = {
    "backup create": ["backup", "create"],
    "backup list": ["backup", "list"],
    "classify": ["classify", "{image}", "{broken}"],
    "codes evaluate": ["codes", "evaluate", "--bits", "64", "--epochs", "1", "--queries", "2", "--no-pixels"],
    "config": ["config"],
    "data check": ["data", "check", "{data}"],
    "embed": ["embed", "{image}", "{broken}"],
    "evaluate": ["evaluate", "tiny:1", "--data", "{data}"],
    "index build": ["index", "build", "{data}"],
    "index duplicates": ["index", "duplicates", "--threshold", "1"],
    "index fields": ["index", "fields"],
    "index map": ["index", "map", "--method", "pca"],
    "index optimize": ["index", "optimize"],
    "index stats": ["index", "stats"],
    "index suggestions": ["index", "suggestions"],
    "keys list": ["keys", "list"],
    "keys new": ["keys", "new", "camera"],
    "models compare": ["models", "compare", "tiny:1", "tiny:1", "--data", "{data}"],
    "models list": ["models", "list"],
    "models show": ["models", "show"],
    "search": ["search", "{image}", "{broken}"],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a home that has a model and an index, and the images in it."""
    root = tmp_path_factory.mktemp("json")
    publish_tiny_model(root / "home", classes=list(CHANNELS))
    data = write_class_folders(root / "data")
    next(data.glob("val/*/*")).with_name("broken.jpg").write_text("no image")
    assert invoke(root / "home", "index", "build", data).exit_code == 0
    return root


def commands_with_json(name: str, command: Any) -> Iterator[str]:
    for child, each in getattr(command, "commands", {}).items():
        yield from commands_with_json(f"{name} {child}".strip(), each)
    if any("--json" in parameter.opts for parameter in command.params):
        yield name


def test_every_command_with_the_option_is_tested_here() -> None:
    assert set(commands_with_json("", typer.main.get_command(app))) == COMMANDS.keys() | ELSEWHERE


@pytest.mark.parametrize("name", COMMANDS)
def test_standard_output_is_one_document(name: str, folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    places = {
        "data": folder / "data",
        "image": next((folder / "data").glob("val/*/*.png")),
        "broken": next((folder / "data").glob("val/*/broken.jpg")),
    }
    words = [word.format(**places) for word in COMMANDS[name]]
    result = call(*words, "--json", FC7_HOME=str(folder / "home"))
    assert result.returncode == (1 if "{broken}" in COMMANDS[name] else 0), result.stderr
    document = json.loads(result.stdout)
    assert isinstance(document, dict | list)
    assert "Traceback" not in result.stderr
    assert "Next: " not in result.stdout
    assert capfd.readouterr().out == "", "printed past sys.stdout by a library"


def test_classify_and_search_list_results_and_skipped_images(folder: Path) -> None:
    image, broken = next((folder / "data").glob("val/*/*.png")), next((folder / "data").glob("val/*/broken.jpg"))
    for command, key in (("classify", "predictions"), ("search", "neighbours")):
        result = invoke(folder / "home", command, image, broken, image, "--json")
        assert result.exit_code == 1
        document = json.loads(result.stdout)
        assert document["model"] == "tiny:1"
        assert [entry["image"] for entry in document["results"]] == [str(image), str(image)]
        assert document["results"][0][key] == document["results"][1][key] != []
        assert [entry["path"] for entry in document["skipped"]] == [str(broken)]
        assert f"error: {broken}: " in result.stderr


def test_stats_as_json_have_the_counts_and_the_model(folder: Path) -> None:
    document = json.loads(invoke(folder / "home", "index", "stats", "--json").stdout)
    assert document["images"] == document["vectors"] == len(list((folder / "data").rglob("*.png")))
    assert document["model"] == "tiny:1"
