"""Write docs/reference.md from the code: every command, every setting, every path.

python -m tests.support.reference
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import typer.main

from service.cli.main import app
from service.settings import describe, load_settings

ROOT = Path(__file__).parents[2]
REFERENCE = ROOT / "docs" / "reference.md"
OPENAPI = ROOT / "docs" / "openapi.json"
_HEAD = """\
# Reference

Every command, setting and path, from the code itself (`python -m tests.support.reference` writes this page).
`fc7 COMMAND --help` has a command's options, [openapi.json](openapi.json) what a path takes and answers.
"""


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command of the command line and its help, in the order of `fc7 --help`."""
    yield from _commands("fc7", typer.main.get_command(app))


def _commands(name: str, command: Any) -> Iterator[tuple[str, str]]:
    children = getattr(command, "commands", None)
    if children is None:
        yield name, (command.help or "").split("\n\n")[0].replace("\n", " ")
        return
    for child, below in children.items():
        yield from _commands(f"{name} {child}", below)


def paths() -> Iterator[tuple[str, str]]:
    """Yield each method and path of the kept OpenAPI document with its summary."""
    for path, methods in json.loads(OPENAPI.read_text(encoding="utf-8"))["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation["summary"]


def render() -> str:
    """Return the page."""
    settings = [
        (f"`{line.variable}`", f"`{line.value}`" if line.value else "", line.description)
        for line in describe(load_settings())
    ]
    return (
        _HEAD
        + _table("Commands", ("command", "what it does"), [(f"`{name}`", text) for name, text in commands()])
        + _table("Settings", ("variable", "default", "meaning"), settings)
        + _table("Paths", ("path", "what it does"), [(f"`{name}`", text) for name, text in paths()])
    )


def _table(title: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return f"\n## {title}\n\n" + "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


if __name__ == "__main__":
    REFERENCE.write_text(render(), encoding="utf-8")
