"""Writes docs/reference.md from the code: every command, setting and HTTP endpoint.

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

This page lists every command, setting and HTTP endpoint. It is generated from the code by
`python -m tests.support.reference`. `fc7 COMMAND --help` describes the options of a command, and
[openapi.json](openapi.json) the parameters and responses of an endpoint.
"""


def commands() -> Iterator[tuple[str, str]]:
    """Yield each command and the first paragraph of its help, in the order of `fc7 --help`."""
    yield from _commands("fc7", typer.main.get_command(app))


def _commands(name: str, command: Any) -> Iterator[tuple[str, str]]:
    if not hasattr(command, "commands"):
        yield name, (command.help or "").split("\n\n")[0].replace("\n", " ")
        return
    for child in command.list_commands(None):
        yield from _commands(f"{name} {child}", command.commands[child])


def endpoints() -> Iterator[tuple[str, str]]:
    """Yield each method and path of docs/openapi.json with its summary."""
    for path, methods in json.loads(OPENAPI.read_text(encoding="utf-8"))["paths"].items():
        for method, operation in methods.items():
            yield f"{method.upper()} {path}", operation["summary"]


def render() -> str:
    """Return the content of docs/reference.md."""
    settings = [
        (f"`{line.variable}`", f"`{line.value}`" if line.value else "", line.description)
        for line in describe(load_settings())
    ]
    return (
        _HEAD
        + _table("Commands", ("command", "description"), [(f"`{name}`", text) for name, text in commands()])
        + _table("Settings", ("variable", "default", "description"), settings)
        + _table("Endpoints", ("endpoint", "description"), [(f"`{name}`", text) for name, text in endpoints()])
    )


def _table(title: str, headings: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [headings, ("---",) * len(headings), *rows]
    return f"\n## {title}\n\n" + "".join(
        "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines
    )


if __name__ == "__main__":
    REFERENCE.write_text(render(), encoding="utf-8")
