"""`fc7 doctor`: run all checks, and print what to fix."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from typing import Final

import typer
from rich.markup import escape
from rich.table import Table

from index.errors import IndexLockedError
from index.records import IndexStats
from model_store.artifact import Artifact
from model_store.errors import Fc7Error
from service.cli import console
from service.cli.doctor import machine
from service.cli.doctor.finding import Finding, Status
from service.cli.doctor.installation import check_installation, find_active
from service.cli.options import AsJson, Home
from service.factory import outdated_note, read_stats_of
from service.inference.memory import needed_to_load
from service.settings import Settings, load_settings

_COLORS: Final[dict[Status, str]] = {"ok": "green", "warning": "yellow", "problem": "red"}
_TYPICAL_VERSION: Final = 700_000_000  # bytes that loading the paper's net takes


def doctor(*, home: Home = None, as_json: AsJson = False) -> None:
    """Check the machine, the installation, the settings and the home, and say how to fix what is wrong.

    The exit code is 1 if something would keep fc7 serve from working.
    """
    findings = list(_examine(load_settings(home=home)))
    problems = sum(finding.status == "problem" for finding in findings)
    if as_json:
        console.print_json([asdict(finding) for finding in findings])
    else:
        table = Table("check", "", "finding", box=None, header_style="bold")
        for finding in findings:
            color = _COLORS[finding.status]
            table.add_row(finding.check, f"[{color}]{finding.status}[/]", escape(finding.detail))
            if finding.fix:
                table.add_row("", "", f"[bold]{escape(finding.fix)}[/]")
        console.show(table)
        console.next_step("fix the problems above, then run fc7 doctor again" if problems else "fc7 serve")
    if problems:
        raise typer.Exit(1)


def _examine(settings: Settings) -> Iterator[Finding]:
    yield machine.check_processor()
    artifact, finding = find_active(settings)
    yield from check_installation(settings, artifact)
    yield machine.check_memory(_TYPICAL_VERSION if artifact is None else needed_to_load(artifact))
    yield machine.check_open_files()
    yield machine.check_clock(settings.home)
    yield from machine.check_home(settings.home)
    yield finding
    yield _check_index(settings, artifact)


def _check_index(settings: Settings, artifact: Artifact | None) -> Finding:
    if settings.index_uri is None and not (settings.home / "index").is_dir():
        return Finding.ok("index", "there is none yet; fc7 index build DIR or fc7 serve makes it")
    try:
        stats = read_stats_of(settings)
    except IndexLockedError as error:
        return Finding.ok("index", f"in use by a running server ({error})")
    except Fc7Error as error:
        return Finding.problem("index", str(error), "fc7 index verify examines it; fc7 index restore brings it back.")
    return _describe_index(stats, artifact)


def _describe_index(stats: IndexStats, artifact: Artifact | None) -> Finding:
    detail = f"{stats.images:,} images, {stats.vectors:,} vectors of {stats.model or 'no model'}"
    if stats.outdated:
        return Finding.warning("index", detail, outdated_note(stats.outdated) + ".")
    if artifact is not None and stats.images and stats.fingerprint != artifact.fingerprint:
        fix = f"fc7 serve embeds them again with {artifact.embedder} in the background; fc7 index reembed does it now."
        return Finding.warning("index", detail, fix)
    return Finding.ok("index", detail)
