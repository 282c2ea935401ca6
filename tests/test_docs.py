"""The documents say what the code does: every command, setting and path, and no link leads nowhere."""

from __future__ import annotations

import os
import re

import pytest

from tests.support.reference import REFERENCE, ROOT, commands, render

PAGES = sorted([ROOT / "README.md", *(ROOT / "docs").glob("*.md")])


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("FC7_")]:
        monkeypatch.delenv(name)


def test_the_reference_is_that_of_the_code() -> None:
    assert REFERENCE.read_text(encoding="utf-8") == render(), (
        "docs/reference.md is not up to date: python -m tests.support.reference"
    )


def test_every_command_has_help() -> None:
    assert [name for name, text in commands() if not text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_to_a_file(page: os.PathLike[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    links = [link.partition("#")[0] for link in re.findall(r"\]\(([^)\s]+)\)", text)]
    local = [link for link in links if link and "://" not in link]
    assert [link for link in local if not ((ROOT / page).parent / link).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_and_setting_that_is_named_exists(page: os.PathLike[str]) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    known = render()
    settings = set(re.findall(r"FC7_[A-Z_]*[A-Z]", text)) - {"FC7_BIND", "FC7_PUBLISH"}  # those two are compose's
    assert [name for name in settings if f"`{name}`" not in known] == []
    named = {name.strip() for name in re.findall(r"^\$? ?(fc7(?: [a-z]+)+)", text, re.MULTILINE)}
    names = [name for name, _ in commands()]
    assert [line for line in named if not any(f"{line} ".startswith(f"{name} ") for name in names)] == []
