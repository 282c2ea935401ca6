"""Hooks for MkDocs: the README is the first page, and links to files outside this folder become plain text."""

from __future__ import annotations

import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

_ROOT = Path(__file__).parents[1]
_LINK = re.compile(r"(?<!!)\[([^\]]+)\]\(([^)\s]+)\)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README as index.md."""
    text = (_ROOT / "README.md").read_text(encoding="utf-8")
    text = re.sub(r"\]\((?!docs/)(?=[A-Z][A-Za-z]*\.md)", "](../", text).replace("](docs/", "](")
    files.append(File.generated(config, "index.md", content=text))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Replace links to source files, which are not part of the site, by their text."""
    del page, config, files
    return _LINK.sub(lambda link: link[1] if link[2].startswith("../") else link[0], markdown)
