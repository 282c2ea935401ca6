"""Shell completion of recipes, runs, models and API keys.

Guarantees: only the names of files, and of keys, are read; what cannot be read gives no suggestions. Each function
returns all names, and Typer suggests those that start with the typed text.
"""

from __future__ import annotations

import os
from importlib import resources
from pathlib import Path

import typer

from model_store.errors import Fc7Error
from service.keys_file import read_keys
from service.settings import Settings, variable


def complete_recipe() -> list[str]:
    """Return the names of the built-in recipes."""
    folder = Path(str(resources.files("model_store.training"))) / "recipes"
    return sorted(file.stem for file in _files(folder, "*.toml"))


def complete_run(context: typer.Context) -> list[str]:
    """Return the names of the runs."""
    return sorted(_runs(_home(context)))


def complete_model(context: typer.Context) -> list[str]:
    """Return the names of the models and their versions."""
    return sorted(_models(_home(context)))


def complete_run_or_model(context: typer.Context) -> list[str]:
    """Return the names of the runs, models and versions."""
    home = _home(context)
    return sorted(_runs(home) | _models(home))


def complete_key(context: typer.Context) -> list[str]:
    """Return the names of the API keys in the keys file."""
    path = Path(os.environ.get(variable("keys_file")) or _home(context) / "keys.json")
    try:
        return sorted(key.name for key in read_keys(path))
    except (OSError, Fc7Error):
        return []


def _home(context: typer.Context) -> Path:
    given = context.params.get("home") or os.environ.get(variable("home"))
    return Path(given or Settings.model_fields["home"].default)


def _runs(home: Path) -> set[str]:
    folders = [file.parent.name for file in _files(home / "runs", "*/run.json")]
    return {folder.rpartition("-")[0].rpartition("-")[0] or folder for folder in folders}


def _models(home: Path) -> set[str]:
    versions = [file.parent for file in _files(home / "models", "[!.]*/[1-9]*/manifest.json")]
    names = {version.parent.name for version in versions}
    return names | {f"{version.parent.name}:{version.name}" for version in versions}


def _files(folder: Path, pattern: str) -> list[Path]:
    try:
        return list(folder.glob(pattern))
    except OSError:
        return []
