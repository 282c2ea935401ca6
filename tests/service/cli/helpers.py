"""Running `fc7` in this process and as a process of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from service.cli.main import app, main

SCRIPT = "from service.cli import main; main()"
WITHOUT_TORCH = f"import sys; sys.modules['torch'] = None; {SCRIPT}"


def environment(**variables: str) -> dict[str, str]:
    """Return this process's environment with only the given `FC7_` variables."""
    return {name: value for name, value in os.environ.items() if not name.startswith("FC7_")} | variables


def invoke(home: Path, *arguments: str | Path, **variables: str) -> Result:
    """Run a command in this process."""
    variables = {"FC7_HOME": str(home)} | variables
    return CliRunner().invoke(app, [str(each) for each in arguments], env=variables)


def call(*arguments: str | Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Run a command in this process, and return what `run` would return: the messages and exit codes of `main`."""
    absent = dict.fromkeys((name for name in os.environ if name.startswith("FC7_")), None)
    # `main` sets this variable; here, it is unset again.
    env: dict[str, str | None] = {**absent, "ORT_DISABLE_TELEMETRY": "1", **variables}
    words, code = [str(each) for each in arguments], 0
    with pytest.MonkeyPatch.context() as patch, CliRunner().isolation(env=env) as (out, errors, _):
        patch.setattr(sys, "argv", ["fc7", *words])
        try:
            main()
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else int(exit_.code is not None)
        sys.stdout.flush()
        with contextlib.suppress(ValueError):
            sys.stderr.flush()
        return subprocess.CompletedProcess(words, code, out.getvalue().decode(), errors.getvalue().decode())


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
