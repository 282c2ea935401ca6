"""The documentation matches the code: commands, settings, endpoints and links."""

from __future__ import annotations

import os
import re

import pytest

from service.api.problems import _INTERNAL, STATUS
from tests.support.reference import (
    COMPOSE_VARIABLES,
    ENV_EXAMPLE,
    REFERENCE,
    ROOT,
    commands,
    render,
    render_env_example,
)
from tests.test_layout import PACKAGES, source_files

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FC7_")]:
        monkeypatch.delenv(name)


def test_the_reference_is_up_to_date() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == render(), (
        "docs/reference.md is outdated. Run: python -m tests.support.reference"
    )


def test_the_example_of_an_environment_file_is_up_to_date() -> None:
    assert ENV_EXAMPLE.read_text(encoding="utf-8") == render_env_example(), (
        ".env.example is outdated. Run: python -m tests.support.reference"
    )


def test_the_environment_file_is_neither_tracked_nor_required() -> None:
    assert "/.env" in (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert (ROOT / ".dockerignore").read_text(encoding="utf-8").startswith("*\n"), "only listed files are in the image"


def test_every_command_has_help() -> None:
    assert [name for name, text in commands() if not text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_local_link_points_to_a_file(page: os.PathLike[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    assert [link for link in local if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_setting_that_is_named_exists(page: os.PathLike[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    known = render()
    settings = set(re.findall(r"FC7_[A-Z_]*[A-Z]", text)) - {name for name, _, _ in COMPOSE_VARIABLES}
    assert [name for name in settings if f"`{name}`" not in known] == []
    named = set(re.findall(r"(?:^ *\$? ?|`)(fc7(?: [a-z][a-z0-9-]*)+)", text, re.MULTILINE))
    assert unknown_commands(named) == []


def test_every_command_named_in_the_code_exists() -> None:
    groups = {name.split()[1] for name, _ in commands() if name.count(" ") > 1}
    pattern = re.compile(rf"fc7 (?:{'|'.join(sorted(groups))}) [a-z][a-z0-9-]*")
    texts = [(ROOT / path).read_text(encoding="utf-8") for path in source_files(".py", below=PACKAGES)]
    assert unknown_commands({line for text in texts for line in pattern.findall(text)}) == []


def unknown_commands(lines: set[str]) -> list[str]:
    """Return the lines that neither start with a command nor are a group of commands."""
    names = [name for name, _ in commands()]
    return sorted(
        line
        for line in lines
        if not any(f"{line} ".startswith(f"{name} ") or name.startswith(f"{line} ") for name in names)
    )


def test_the_runbook_explains_every_problem_type_with_its_status() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| ((?:`[a-z-]+`(?:, )?)+) \| (\d+) \| (.+) \| (.+) \|$", text, re.MULTILINE)
    explained = [(name, int(status)) for names, status, _, _ in rows for name in re.findall(r"`([a-z-]+)`", names)]
    assert len(explained) == len(set(explained))
    assert sorted(explained) == sorted({(kind.slug, kind.status) for kind in (*STATUS.values(), _INTERNAL)})


def test_links_to_sections_of_the_runbook_exist() -> None:
    text = (ROOT / "docs" / "runbook.md").read_text(encoding="utf-8")
    headings = {heading.lower().replace(" ", "-") for heading in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
    assert set(re.findall(r"\]\(#([^)]+)\)", text)) <= headings
