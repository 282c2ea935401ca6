"""Help, version and wrong use of `fc7`."""

from __future__ import annotations

import importlib
import re
from importlib import metadata
from pathlib import Path

import pytest

from service.cli.main import Panel
from tests.service.cli.helpers import WITHOUT_TORCH, invoke, run
from tests.support.reference import commands

GROUPS = ["backup", "data", "head", "jobs", "keys", "models", "import", "index", "codes", "paper"]
# The package's attribute `main` is the function.
main_module = importlib.import_module("service.cli.main")
NAMES = [name for name, _ in commands()]


def test_version_is_printed() -> None:
    done = run("--version")
    assert (done.returncode, done.stdout, done.stderr) == (0, f"fc7 {metadata.version('fc7')}\n", "")


@pytest.mark.parametrize(
    "words", [[], *([group] for group in GROUPS), *(name.split()[1:] for name in NAMES)], ids=" ".join
)
def test_every_command_and_group_takes_h_and_help(words: list[str], tmp_path: Path) -> None:
    shown = invoke(tmp_path, *words, "-h", COLUMNS="120")
    assert shown.exit_code == 0
    assert "Usage:" in shown.stdout
    assert re.search(r"--help +-h .*Show this message and exit", shown.stdout), "two names of one option"


def test_commands_are_listed_in_panels(tmp_path: Path) -> None:
    text = invoke(tmp_path, "--help", COLUMNS="120").stdout
    headings = re.findall(r"^╭─ (\w+) ─", text, re.MULTILINE)
    assert headings == ["Options", *Panel]
    panels = {part.split(" ", 1)[0]: re.findall(r"^│ (\w+) ", part, re.MULTILINE) for part in text.split("╭─ ")[1:]}
    del panels["Options"]
    assert panels == {
        "Start": ["demo", "config", "doctor"],
        "Train": ["train", "evaluate", "export", "data"],
        "Serve": ["serve", "classify", "search", "embed", "explain", "mcp", "jobs", "keys", "backup"],
        "Models": ["models", "head", "import"],
        "Index": ["index", "codes"],
        "Research": ["report", "ablate", "paper"],
    }


def test_help_is_one_plain_sentence_per_command() -> None:
    for name, text in commands():
        assert re.fullmatch(r"[A-Z].*[^.]\.", text), (name, text)
        assert ". " not in text, (name, text)


def test_defaults_in_brackets_are_shown(tmp_path: Path) -> None:
    text = " ".join(invoke(tmp_path, "train", "--help", COLUMNS="200").stdout.split())
    assert "[default: (FC7_DEVICE)]" in text
    assert "[default: (small)]" in text


@pytest.mark.parametrize(
    "words",
    [
        ["nothing"],
        ["classify"],
        ["classify", "a.jpg", "--views", "3"],
        ["evaluate", "a", "--views", "2"],
        ["export", "a", "--views", "0"],
        ["report", "a", "--out", "b", "--views", "11"],
        ["index", "build", "a", "--actors", "2"],
        ["codes", "train", "--bits", "32"],
    ],
    ids=" ".join,
)
def test_wrong_use_exits_with_code_2_and_without_a_traceback(words: list[str], tmp_path: Path) -> None:
    result = invoke(tmp_path, *words)
    assert result.exit_code == 2
    assert "Usage:" in result.stderr
    assert "Traceback" not in result.output
    assert result.stdout == ""


def test_a_missing_training_package_is_reported_with_the_extra_to_install(tmp_path: Path) -> None:
    for words in (["train", "--name", "a", "--data", "b"], ["paper", "figure1", "--data", "b", "--out", "c"]):
        done = run(*words, script=WITHOUT_TORCH, FC7_HOME=str(tmp_path))
        assert (done.returncode, done.stdout) == (1, "")
        assert "pip install 'fc7[train]'" in done.stderr
        assert "Traceback" not in done.stderr


def test_a_file_that_cannot_be_written_is_reported_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse() -> None:
        raise PermissionError(13, "Permission denied", "/results/figure1.json")

    monkeypatch.setattr(main_module, "app", refuse)
    with pytest.raises(SystemExit) as stopped:
        main_module.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == "error: /results/figure1.json: Permission denied.\n"


INTERRUPTED_IMPORT = """
import sys


class Interrupt:
    def find_spec(self, name, *_):
        if name == "service.cli.index.commands":
            raise KeyboardInterrupt


sys.meta_path.insert(0, Interrupt())
from service.cli import main
"""
INTERRUPTED_START = """
import sys
from service.cli import main


def interrupt():
    raise KeyboardInterrupt


sys.modules["service.cli.main"].app = interrupt
main()
"""


@pytest.mark.parametrize("script", [INTERRUPTED_IMPORT, INTERRUPTED_START])
def test_ctrl_c_before_a_command_starts_prints_no_traceback(script: str) -> None:
    done = run(script=script)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")
