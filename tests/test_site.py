"""The documentation builds as a site, without broken links, and its pages load nothing from other hosts."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.test_layout import ROOT


def test_the_site_is_built_without_warnings_and_needs_no_other_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    pages = {path.name for path in (tmp_path / "site").glob("*.html")}
    written = {path.with_suffix(".html").name for path in (ROOT / "docs").glob("*.md")}
    assert pages == written | {"index.html", "404.html"}
    html = (tmp_path / "site" / "index.html").read_text(encoding="utf-8")
    loaded = re.findall(r"<(?:script|img|iframe)[^>]* src=[\"']?([^\"'> ]+)|<link[^>]* href=[\"']?([^\"'> ]+)", html)
    assert [address for pair in loaded for address in pair if "//" in address] == []
