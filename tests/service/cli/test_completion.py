"""Shell completion of recipes, runs and models."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

import pytest

from tests.service.cli.helpers import call, run
from tests.support.tiny_model import publish_tiny_model


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    home = tmp_path_factory.mktemp("completion")
    publish_tiny_model(home, name="solar")
    publish_tiny_model(home, name="solar", seed=1)
    publish_tiny_model(home, name="birds")
    for name in ("solar-20260101-120000", "solar-20260102-120000", "cars-20260101-120000"):
        (home / "runs" / name).mkdir(parents=True)
        (home / "runs" / name / "run.json").write_text("not read")
    (home / "runs" / "empty-20260101-120000").mkdir()
    return home


SCRIPT = """
import sys
from service.cli import main
sys.argv = ["fc7"]
try:
    main()
finally:
    assert "torch" not in sys.modules
"""


def request(line: str) -> dict[str, str]:
    """Return the variables by which bash asks for suggestions for the last word of a command line."""
    return {"_FC7_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}


def complete(line: str, **variables: str) -> list[str]:
    """Return what bash suggests for the last word of a command line."""
    done = call(**request(line), **variables)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_torch_is_not_imported_for_suggestions(home: Path) -> None:
    done = run(script=SCRIPT, **request("fc7 export s"), FC7_HOME=str(home))
    assert (done.returncode, done.stdout.split(), done.stderr) == (0, ["solar"], "")


@pytest.mark.parametrize(
    ("line", "suggestions"),
    [
        ("fc7 train --name ", ["cars", "solar"]),
        ("fc7 export s", ["solar"]),
        ("fc7 evaluate ", ["birds", "birds:1", "cars", "solar", "solar:1", "solar:2"]),
        ("fc7 models activate so", ["solar", "solar:1", "solar:2"]),
        ("fc7 classify --model b", ["birds", "birds:1"]),
        ("fc7 models show x", []),
    ],
)
def test_runs_and_models_in_the_home_are_suggested(line: str, suggestions: list[str], home: Path) -> None:
    assert complete(line, FC7_HOME=str(home)) == suggestions


def test_the_home_option_is_used(home: Path, tmp_path: Path) -> None:
    assert complete(f"fc7 models show --home {home} bi", FC7_HOME=str(tmp_path)) == ["birds", "birds:1"]


def test_recipes_are_suggested(tmp_path: Path) -> None:
    files = (resources.files("model_store.training") / "recipes").iterdir()
    names = sorted(file.name.removesuffix(".toml") for file in files if file.name.endswith(".toml"))
    assert complete("fc7 train --recipe ", FC7_HOME=str(tmp_path)) == names
    assert complete("fc7 train --recipe s", FC7_HOME=str(tmp_path)) == ["small"]


@pytest.mark.parametrize("kind", ["missing", "file", "unreadable"])
def test_a_home_that_cannot_be_read_gives_no_suggestions(kind: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    if kind == "file":
        home.write_text("no folder")
    elif kind == "unreadable":
        home.mkdir()
        (home / "models").write_text("no folder")
    assert complete("fc7 evaluate ", FC7_HOME=str(home), FC7_PORT="not a port") == []
