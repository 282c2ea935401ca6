"""A table of all GPU checks: what was checked, the result, and the measured figures."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.artifact import Artifact

CHECK, FIGURE = "check", "figure"
_STATES = {"passed": "ok", "failed": "FAILED", "error": "FAILED", "skipped": "skipped"}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Name each check in the table by the test's docstring."""
    for item in items:
        if isinstance(item, pytest.Function) and "tests/gpu/" in item.nodeid:
            item.user_properties.append((CHECK, (item.function.__doc__ or item.name).partition("\n")[0]))


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str], None]:
    """Return a function that shows a figure in the table."""
    return lambda text: request.node.user_properties.append((FIGURE, text))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table."""
    rows = []
    for outcome, state in _STATES.items():
        for report in terminalreporter.stats.get(outcome, []):
            properties = dict(report.user_properties)
            if CHECK in properties:
                skipped = outcome == "skipped" and isinstance(report.longrepr, tuple)
                reason = report.longrepr[2].removeprefix("Skipped: ") if skipped else ""
                rows.append((properties[CHECK], state, properties.get(FIGURE, reason)))
    if rows:
        width = max(len(check) for check, _, _ in rows)
        terminalreporter.section("GPU checks")
        for check, state, text in rows:
            terminalreporter.write_line(f"{check:<{width}}  {state:<7}  {text}")


@pytest.fixture(scope="session")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> Artifact:
    """Publish the paper's net with random weights, and activate it."""
    # torch is needed only here, so that `pytest --collect-only` works without it.
    from model_store.store import ModelStore  # noqa: PLC0415
    from model_store.training.export.publish import export_run  # noqa: PLC0415
    from model_store.training.nets.alexnet import Architecture  # noqa: PLC0415
    from model_store.training.runs.run import load_run  # noqa: PLC0415
    from tests.support.training.run_folder import write_pictures, write_run  # noqa: PLC0415

    root: Path = tmp_path_factory.mktemp("gpu")
    write_pictures(root / "data")
    store = ModelStore(root / "home")
    run = load_run(write_run(root / "home", root / "data", Architecture(3, input_scale=1 / 64), name="alexnet"))
    exported = export_run(run, store).artifact
    store.activate(exported.name, exported.version)
    return exported
