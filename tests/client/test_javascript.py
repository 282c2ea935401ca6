"""Types that openapi-typescript generates from docs/openapi.json compile with the example: `make test-javascript`."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from shutil import copy, copytree, ignore_patterns

import pytest

from tests.support import pictures
from tests.support.server import ThreadServer

pytestmark = pytest.mark.javascript

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the example, with its packages and the generated types."""
    root = tmp_path_factory.mktemp("javascript")
    (root / "docs").mkdir()
    copy(ROOT / "docs" / "openapi.json", root / "docs")
    folder = copytree(
        ROOT / "client" / "javascript", root / "client" / "javascript", ignore=ignore_patterns("node_modules", "build")
    )
    for command in (["npm", "ci", "--no-audit", "--no-fund"], ["npm", "run", "types"]):
        ended = run(folder, *command)
        assert ended.returncode == 0, ended.stderr
    return folder


def run(folder: Path, *command: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, cwd=folder, env=os.environ | variables, capture_output=True, text=True, check=False, timeout=300
    )


def test_the_example_compiles_and_runs_against_the_server(project: Path, server: ThreadServer) -> None:
    built = run(project, "npm", "run", "build")
    assert built.returncode == 0, built.stdout
    (project / "photo.jpg").write_bytes(pictures.jpeg(1))
    ended = run(project, "node", "build/example.js", "photo.jpg", SERVER_URL=server.url)
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0] == "photo.jpg: added"
    assert [line.endswith(" %") for line in lines[1:4]] == [True] * 3
    assert lines[4] == "photo.jpg: 0.0"
    assert server.client.get("/v1/images/photo.jpg").json()["metadata"] == {"label": "example"}


@pytest.mark.parametrize(
    ("right", "wrong"),
    [("added.data.outcome", "added.data.outcomes"), ("{ k: 3 }", '{ k: "three" }'), ("/v1/classify", "/v1/klassify")],
)
def test_wrong_uses_of_the_api_do_not_compile(project: Path, right: str, wrong: str) -> None:
    example = project / "example.ts"
    text = example.read_text(encoding="utf-8")
    assert right in text
    try:
        example.write_text(text.replace(right, wrong), encoding="utf-8")
        assert "example.ts" in run(project, "npm", "run", "build").stdout
    finally:
        example.write_text(text, encoding="utf-8")
