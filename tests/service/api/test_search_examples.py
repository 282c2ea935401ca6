"""The commands of docs/search.md work as written."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

from tests.support import pictures
from tests.support.novelty import publish_with_reference
from tests.support.reference import ROOT
from tests.support.server import ThreadServer, thread_server

PAGE = ROOT / "docs" / "search.md"
FILES = ("heron.jpg", "gull.jpg", "ferry.jpg")


def commands() -> list[str]:
    blocks = re.findall(r"```sh\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    return [command for block in blocks for command in block.replace("\\\n", " ").splitlines()]


def run(command: str, folder: Path, server: ThreadServer) -> str:
    local = command.replace("localhost:8000", f"127.0.0.1:{server.port}").replace("curl ", "curl -sS --fail-with-body ")
    done = subprocess.run(local, shell=True, cwd=folder, capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, (command, done.stdout, done.stderr)
    return done.stdout


def test_every_command_of_the_page_succeeds(tmp_path: Path) -> None:
    publish_with_reference(tmp_path / "home")
    for number, name in enumerate(FILES):
        (tmp_path / name).write_bytes(pictures.jpeg(number))
    with thread_server(tmp_path / "home") as server:
        found = [json.loads(run(command, tmp_path, server)) for command in commands()]
    assert len(found) == 15
    assert [len(answer["results"]) for answer in found[3:5]] == [2, 1]
    assert {"neighbours", "predictions", "novelty"} == found[4]["results"][0].keys()
    assert found[6]["results"] == [{"neighbours": []}], "all three images are examples"
