"""Running `fc7` in this process and as a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from typer.testing import CliRunner, Result

from service.cli.main import app

SCRIPT = "from service.cli import main; main()"


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with only the given `FC7_` variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FC7_")} | variables


def invoke(home: Path, *arguments: str | Path, **variables: str) -> Result:
    """Run a command in this process."""
    variables = {"FC7_HOME": str(home)} | variables
    return CliRunner().invoke(app, [str(each) for each in arguments], env=variables)


def run(*arguments: str | Path, script: str = SCRIPT, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command as a process; its output is not a terminal. script: Python code that calls `main`."""
    return subprocess.run(
        [sys.executable, "-c", script, *map(str, arguments)],
        env=environment(**variables),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
