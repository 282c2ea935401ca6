"""`fc7 jobs list|show|retry|cancel|result`: the background jobs of a running server.

Jobs run in the server, which alone knows why one waits, so these commands ask it over HTTP.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Final
from urllib.parse import quote

import typer
from rich.markup import escape
from rich.table import Table

from service.cli import console
from service.cli.options import AsJson, Key, Url
from service.cli.server_client import ServerClient
from service.settings import load_settings

_OPEN: Final = ("waiting", "running")
app = typer.Typer(name="jobs", help="List, retry and cancel the jobs of a running server.", no_args_is_help=True)

JobId = Annotated[str, typer.Argument(metavar="JOB", help="ID of the job.")]
Target = Annotated[
    Path | None,
    typer.Option("--out", metavar="FILE", help="File to write.", show_default="JOB and the ending of the file"),
]


@app.command("list")
def list_(*, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """List the jobs, newest first."""
    jobs = _client(url, key).send("GET", "/v1/jobs")["jobs"]
    if as_json:
        console.print_json(jobs)
        return
    if not jobs:
        console.say("No jobs. Start one with POST /v1/jobs.")
        return
    table = Table("job", "kind", "state", "done", "skipped", "created (UTC)", "note", box=None, header_style="dim")
    for job in jobs:
        table.add_row(
            job["id"],
            job["kind"],
            job["state"],
            f"{job['seen']:,}/{job['total']:,}",
            f"{job['skipped']:,}",
            job["created"][:19].replace("T", " "),
            escape(_note(job)),
        )
    console.show(table)


@app.command()
def show(job: JobId, *, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Print the state of a job, how much is done, and its result."""
    _print(_client(url, key).send("GET", _path(job)), as_json=as_json)


@app.command()
def retry(job: JobId, *, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Continue a failed job."""
    _print(_client(url, key).send("POST", f"{_path(job)}/retry"), as_json=as_json)


@app.command()
def cancel(job: JobId, *, url: Url = None, key: Key = None, as_json: AsJson = False) -> None:
    """Stop a job, or delete the files of one that has ended."""
    found = _client(url, key).send("DELETE", _path(job))
    _print(found, as_json=as_json)
    if found["state"] in _OPEN:
        console.say("It stops after its current batch.")


@app.command()
def result(job: JobId, *, out: Target = None, url: Url = None, key: Key = None) -> None:
    """Download the result file of a job, or print its result if it has no file."""
    client = _client(url, key)
    found = client.send("GET", _path(job))
    if found["result"] is not None and not found["result_bytes"] and out is None:
        console.print_json(found["result"])
        return
    ending = Path((found["result"] or {}).get("file", "")).suffix
    target = out or Path(job + ending)
    size = client.download(f"{_path(job)}/result", target)
    console.say(f"{target} has the result of job {job} ({size:,} bytes).")


def _client(url: str | None, key: str | None) -> ServerClient:
    return ServerClient(url, key, load_settings())


def _path(job: str) -> str:
    return f"/v1/jobs/{quote(job, safe='')}"


def _note(job: dict[str, Any]) -> str:
    """Return why a job failed or waits, or what it has."""
    if reason := job["error"] or job["waiting_for"]:
        return str(reason)
    return f"result file of {job['result_bytes']:,} bytes" if job["result_bytes"] else ""


def _print(job: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        console.print_json(job)
        return
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for name, value in job.items():
        if name != "skipped_images" and value not in (None, {}, []):
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            grid.add_row(f"[dim]{name}[/]", escape(console.printable(text)))
    console.show(grid)
    console.say_first([f"skipped {entry['name']}: {entry['reason']}" for entry in job["skipped_images"]])
