"""The README's commands for one's own images, after the demo: they end with one's own model and an index of its own."""

from __future__ import annotations

import contextlib
import json
import shlex
from pathlib import Path

import pytest

from model_store.store import ModelStore
from service.cli.data import commands as data
from service.cli.training import export
from tests.service.cli.helpers import invoke
from tests.support.tiny_model import publish_tiny_model
from tests.support.training.run_folder import write_pictures, write_run

README = Path(__file__).parents[4] / "README.md"


def commands() -> list[list[str]]:
    """Return the words of the commands below "Use your own images", without `export` and comments."""
    section = README.read_text(encoding="utf-8").partition("## Use your own images")[2]
    block = section.partition("```sh\n")[2].partition("```")[0]
    assert 'export FC7_HOME="$PWD/mine"' in block
    return [shlex.split(line, comments=True) for line in block.splitlines() if line.startswith("fc7 ")]


def indexed(home: Path, picture: Path, *words: str) -> set[str]:
    done = invoke(home, "search", picture, "-k", "100", "--json", *words)
    assert done.exit_code == 0, done.output
    return {near["key"] for near in json.loads(done.stdout)["results"][0]["neighbours"]}


def test_they_end_with_ones_own_model_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    demo, mine = tmp_path / "var", tmp_path / "mine"
    for root in (tmp_path / "cells", tmp_path / "photos"):
        for split in ("train", "val"):
            write_pictures(root, split, seed=len(root.name))
    publish_tiny_model(demo, name=data.DEMO_NAME, activate=True)
    assert invoke(demo, "index", "build", tmp_path / "cells").exit_code == 0
    monkeypatch.setattr(export, "require_better_than_baseline", lambda _: None)  # the weights are random
    with contextlib.chdir(tmp_path):
        for _, *words in commands():
            if words[0] == "train":
                assert words[1:] == ["photos", "--name", "mine"]
                write_run(mine, tmp_path / "photos", name="mine")
            elif words[0] != "serve":
                done = invoke(mine, *words)
                assert done.exit_code == 0, (words, done.output, done.exception)
    assert ModelStore(mine).active_artifact().id == "mine:1"
    picture = tmp_path / "photos/val/red/0.png"
    own = {path.relative_to(tmp_path / "photos").as_posix() for path in (tmp_path / "photos").rglob("*.png")}
    assert indexed(mine, picture) == own
    assert indexed(mine, picture, "--where", "label:red") == {key for key in own if "/red/" in key}
    assert ModelStore(demo).active_artifact().id == f"{data.DEMO_NAME}:1"
    cells = {path.relative_to(tmp_path / "cells").as_posix() for path in (tmp_path / "cells").rglob("*.png")}
    assert indexed(demo, picture) == cells


def test_in_the_demos_home_the_index_says_what_it_had_before(tmp_path: Path) -> None:
    for name in ("cells", "photos"):
        write_pictures(tmp_path / name, seed=len(name))
    publish_tiny_model(tmp_path / "home", name=data.DEMO_NAME, activate=True)
    assert invoke(tmp_path / "home", "index", "build", tmp_path / "cells", "--key-prefix", "cells/").exit_code == 0
    done = invoke(tmp_path / "home", "index", "build", tmp_path / "photos")
    assert "12 other images were in the index before" in done.stderr
    assert "requires another FC7_HOME" in done.stderr
