"""Shell completion of recipes, runs and models.

Guarantees: only names in folders are read; whatever cannot be read gives no suggestions.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from importlib import resources
from pathlib import Path

import typer

from service.settings import Settings, variable


def complete_recipe(incomplete: str) -> list[str]:
    """Return the built-in recipes that start with the given text."""
    try:
        names = [entry.name for entry in (resources.files("model_store.training") / "recipes").iterdir()]
    except OSError:
        return []
    return _matching((name.removesuffix(".toml") for name in names if name.endswith(".toml")), incomplete)


def complete_run(context: typer.Context, incomplete: str) -> list[str]:
    """Return the names of runs that start with the given text."""
    return _matching(_runs(_home(context)), incomplete)


def complete_model(context: typer.Context, incomplete: str) -> list[str]:
    """Return the models, and their versions, that start with the given text."""
    return _matching(_models(_home(context)), incomplete)


def complete_run_or_model(context: typer.Context, incomplete: str) -> list[str]:
    """Return the runs, models and versions that start with the given text."""
    home = _home(context)
    return _matching([*_runs(home), *_models(home)], incomplete)


def _home(context: typer.Context) -> Path:
    given = context.params.get("home") or os.environ.get(variable("home"))
    return Path(given or Settings.model_fields["home"].default)


def _runs(home: Path) -> Iterator[str]:
    for file in _files(home / "runs", "*/run.json"):
        yield file.parent.name.rpartition("-")[0].rpartition("-")[0] or file.parent.name


def _models(home: Path) -> Iterator[str]:
    for file in _files(home / "models", "[!.]*/[1-9]*/manifest.json"):
        version = file.parent
        yield version.parent.name
        yield f"{version.parent.name}:{version.name}"


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []


def _matching(names: Iterator[str] | list[str], incomplete: str) -> list[str]:
    return sorted({name for name in names if name.startswith(incomplete)})
