"""The examples in docs/clients.md run against the real server."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support import pictures
from tests.support.server import ThreadServer

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "clients.md").read_text(encoding="utf-8")
URL = "http://127.0.0.1:8000"


def blocks(language: str, containing: str) -> list[str]:
    """Return the code blocks of the page in this language that contain a text."""
    return [block for block in re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL) if containing in block]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the files that the examples name."""
    (tmp_path / "photo.jpg").write_bytes(pictures.jpeg(1))
    for number in range(4):
        path = tmp_path / "photos" / ("cat" if number < 3 else "dog") / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(pictures.jpeg(number))
    return tmp_path


def run(folder: Path, server: ThreadServer, *command: str) -> str:
    """Run an example in the folder, and return what it prints."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "client")}
    example = [part.replace(URL, server.url) for part in command]
    ended = subprocess.run(
        example, cwd=folder, env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


def test_the_examples_in_curl_run(server: ThreadServer, folder: Path) -> None:
    [block] = blocks("sh", "curl")
    output = run(folder, server, "bash", "-euo", "pipefail", "-c", block)
    assert output.count('"predictions":[{') == 2
    assert '"neighbours":[{"key":"first","distance":0.0' in output
    assert '"values":[{"value":"dog","count":1}]' in output


def test_the_examples_in_python_run(server: ThreadServer, folder: Path) -> None:
    examples = blocks("python", "import")
    adding, listing, job, errors = [run(folder, server, sys.executable, "-W", "error", "-c", text) for text in examples]
    assert re.match(r"\w+: \d+\.\d%\n1 of 4\n2 of 4\n3 of 4\n4 of 4\ncat/1\.jpg 0\.0\n", adding)
    assert adding.endswith("{'cat': 2, 'dog': 2}\n")
    assert listing.splitlines() == [
        "tiny:1 4096",
        "cat/0.jpg {'label': 'cat'}",
        "cat/1.jpg {'label': 'dog'}",
        "cat/2.jpg {'label': 'cat'}",
    ]
    assert "done: 4 of 4" in job
    assert "cat/0.jpg," in job
    assert errors.startswith("400 image-unreadable ")


def test_the_example_in_javascript_is_the_tested_one() -> None:
    assert blocks("typescript", "import") == [
        (ROOT / "client" / "javascript" / "example.ts").read_text(encoding="utf-8")
    ]
