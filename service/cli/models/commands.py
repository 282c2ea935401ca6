"""`fc7 models list|show|activate|rollback`: which versions there are, what they are, and which one is served.

Does not: load a graph, publish (`fc7 export` does), tell a running server: it serves its version until it starts again,
or is told over HTTP.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from model_store.artifact import Artifact
from model_store.errors import NoActiveModelError
from model_store.store import ActiveModels, ModelStore
from service.settings import load_settings

_CLASSES_SHOWN = 20

app = typer.Typer(name="models", help="The published versions, and which of them is served.", no_args_is_help=True)

Home = Annotated[Path | None, typer.Option(help="Folder of all state [FC7_HOME].", show_default=False)]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]


@app.command("list")
def list_(*, home: Home = None, as_json: AsJson = False) -> None:
    """Print every published version; the active one has a star."""
    store = ModelStore(load_settings(home=home).home)
    artifacts, broken = store.scan()
    active = store.active()
    for error in broken:
        _errors().print(f"[yellow]left out:[/] {escape(str(error))}")
    if as_json:
        lines = [_summary(artifact) | {"active": _is_active(artifact, active)} for artifact in artifacts]
        typer.echo(json.dumps(lines, ensure_ascii=False, indent=2))
        return
    if not artifacts:
        Console(soft_wrap=True, highlight=False).print(str(NoActiveModelError()))
        return
    table = Table(
        "", "model", "classes", "top-1 error", "top-5 error", "published (UTC)", "size", box=None, header_style="dim"
    )
    for artifact in artifacts:
        metrics = artifact.manifest.metrics
        table.add_row(
            "[green]*[/]" if _is_active(artifact, active) else "",
            escape(artifact.id),
            str(len(artifact.labels)),
            _share(metrics.get("top1_error")),
            _share(metrics.get("top5_error")),
            f"{artifact.manifest.created:%Y-%m-%d %H:%M}",
            f"{_bytes(artifact) / 1e6:.0f} MB",
        )
    Console().print(table)
    if active is None:
        _errors().print(str(NoActiveModelError([artifact.id for artifact in artifacts])))


@app.command()
def show(
    model: Annotated[
        str | None, typer.Argument(metavar="MODEL", help="NAME or NAME:VERSION; the active one by default.")
    ] = None,
    *,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Compare a version's files with its manifest, and print what the manifest says."""
    store = ModelStore(load_settings(home=home).home)
    artifact = store.active_artifact() if model is None else store.resolve(model)
    if as_json:
        typer.echo(artifact.manifest.model_dump_json(indent=2))
        return
    manifest, active = artifact.manifest, store.active()
    console = Console(soft_wrap=True, highlight=False)
    state = "[green]active[/], " if _is_active(artifact, active) else ""
    console.print(
        f"[bold]{artifact.id}[/]  {state}{len(manifest.files)} files as in the manifest, {escape(str(artifact.path))}"
    )
    grid = Table.grid(padding=(0, 2))
    grid.add_column(no_wrap=True)
    grid.add_column(overflow="fold")
    for key, value in [
        ("published", f"{manifest.created:%Y-%m-%d %H:%M:%S} UTC"),
        ("architecture", manifest.architecture),
        ("producer", f"{manifest.producer}, opset {manifest.opset}"),
        ("trained by", manifest.parent_run or "unknown"),
        ("fingerprint", artifact.fingerprint),
        (
            "input",
            f"{manifest.input.name} {manifest.input.dtype} {_shape(manifest.input.shape)}, {manifest.input.colour}",
        ),
        *(("output", f"{output.name} {output.dtype} {_shape(output.shape)}") for output in manifest.outputs),
        *((f"metrics.{name}", value) for name, value in _flat(manifest.metrics)),
        *(
            (f"{precision}.{name}", value)
            for precision, entry in manifest.precisions.items()
            for name, value in _flat({"fingerprint": entry.fingerprint, **entry.metrics})
        ),
        *((f"recipe.{name}", value) for name, value in _flat(manifest.recipe)),
        *((f"file {name}", f"{entry.size:,} bytes, {entry.sha256[:12]}") for name, entry in manifest.files.items()),
    ]:
        grid.add_row(f"[dim]{escape(key)}[/]", escape(value))
    console.print(grid)
    more = f", and {len(artifact.labels) - _CLASSES_SHOWN} more" if len(artifact.labels) > _CLASSES_SHOWN else ""
    console.print(
        f"[dim]{len(artifact.labels)} classes:[/] {escape('; '.join(artifact.labels[:_CLASSES_SHOWN]))}{more}"
    )


@app.command()
def activate(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="NAME:VERSION, or NAME for its newest version.")],
    *,
    home: Home = None,
) -> None:
    """Compare a version's files with its manifest, and serve it from the next start on."""
    store = ModelStore(load_settings(home=home).home)
    artifact = store.resolve(model, verify=False)
    store.activate(artifact.name, artifact.version)
    _print_active(store)


@app.command()
def rollback(*, home: Home = None) -> None:
    """Serve the version again that was active before."""
    store = ModelStore(load_settings(home=home).home)
    store.rollback()
    _print_active(store)


def _print_active(store: ModelStore) -> None:
    active = store.active()
    if active is not None:
        before = f" (before: {active.previous})" if active.previous else ""
        Console(soft_wrap=True, highlight=False).print(f"[green]{active.active}[/] is the active version{before}")


def _errors() -> Console:
    return Console(stderr=True, soft_wrap=True, highlight=False)


def _is_active(artifact: Artifact, active: ActiveModels | None) -> bool:
    return active is not None and str(active.active) == artifact.id


def _summary(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "name": artifact.name,
        "version": artifact.version,
        "created": manifest.created.isoformat(),
        "classes": len(artifact.labels),
        "bytes": _bytes(artifact),
        "fingerprint": artifact.fingerprint,
        "metrics": manifest.metrics,
    }


def _bytes(artifact: Artifact) -> int:
    return sum(entry.size for entry in artifact.manifest.files.values())


def _share(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float | int) else "-"


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)
