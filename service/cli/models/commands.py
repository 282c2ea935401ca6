"""`fc7 models list|show|activate|rollback`: the published versions, and which one is active.

Out of scope: loading a graph; publishing (`fc7 export`); switching a running server, which keeps its version until it
restarts or is switched over HTTP.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from model_store.artifact import Artifact
from model_store.errors import NoActiveModelError
from model_store.runtime.openvino_engine import bf16_obstacle
from model_store.store import ModelStore, require_better_than_baseline
from service.cli import console
from service.cli.options import AsJson, Force, Home, Model, find_version, model_argument
from service.settings import load_settings

_CLASSES_SHOWN = 20

app = typer.Typer(
    name="models", help="List, compare, activate, save and load published versions.", no_args_is_help=True
)


@app.command("list")
def list_(*, home: Home = None, as_json: AsJson = False) -> None:
    """List the published versions; the active one is marked with a star."""
    store = ModelStore(load_settings(home=home).home)
    artifacts, broken = store.scan()
    active = _active_id(store)
    for error in broken:
        console.warn(f"A version was left out: {error}")
    if as_json:
        console.print_json([_summary(artifact) | {"active": artifact.id == active} for artifact in artifacts])
        return
    if not artifacts:
        console.say(NoActiveModelError())
        return
    table = Table(
        *("", "model", "classes", "top-1 error", "95 % interval", "majority class", "balanced accuracy", "macro F1"),
        *("calibration error", "published (UTC)", "size"),
        box=None,
        header_style="dim",
    )
    for artifact in artifacts:
        metrics = artifact.manifest.metrics
        table.add_row(
            "[green]*[/]" if artifact.id == active else "",
            escape(artifact.id),
            str(len(artifact.labels)),
            _share(metrics.get("top1_error")),
            "-".join(map(_share, metrics.get("top1_error_interval", [None]))),
            _share(metrics.get("majority_class_error")),
            _share(metrics.get("balanced_accuracy")),
            f"{metrics['macro_f1']:.2f}" if "macro_f1" in metrics else "-",
            _share(metrics.get("expected_calibration_error")),
            f"{artifact.manifest.created:%Y-%m-%d %H:%M}",
            f"{_bytes(artifact) / 1e6:.0f} MB",
        )
    console.show(table)
    _explain_f32(artifacts)
    if active is None:
        console.say(NoActiveModelError([artifact.id for artifact in artifacts]))
    else:
        console.next_step("fc7 models show MODEL, or fc7 models activate MODEL")


@app.command()
def show(
    model: Annotated[str | None, model_argument(show_default="the active version")] = None,
    *,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Verify the checksums of a version's files and print its manifest."""
    store = ModelStore(load_settings(home=home).home)
    artifact = find_version(store, model)
    if as_json:
        console.print_json(artifact.manifest.model_dump(mode="json"))
        return
    manifest = artifact.manifest
    is_active = artifact.id == _active_id(store)
    state = "[green]active[/], " if is_active else ""
    console.show(
        f"[bold]{artifact.id}[/]  {state}{len(manifest.files)} files match the manifest, {escape(str(artifact.path))}"
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
            (f"metrics.class {entry['label']}", _class_figures(entry))
            for entry in manifest.metrics.get("per_class", [])
        ),
        *(
            (f"{precision}.{name}", value)
            for precision, entry in manifest.precisions.items()
            for name, value in _flat({"fingerprint": entry.fingerprint, **entry.metrics})
        ),
        *((f"recipe.{name}", value) for name, value in _flat(manifest.recipe)),
        *((f"file {name}", f"{entry.size:,} bytes, {entry.sha256[:12]}") for name, entry in manifest.files.items()),
    ]:
        grid.add_row(f"[dim]{escape(key)}[/]", escape(value))
    console.show(grid)
    more = f", and {len(artifact.labels) - _CLASSES_SHOWN} more" if len(artifact.labels) > _CLASSES_SHOWN else ""
    console.show(f"[dim]{len(artifact.labels)} classes:[/] {escape('; '.join(artifact.labels[:_CLASSES_SHOWN]))}{more}")
    console.next_step("fc7 serve" if is_active else f"fc7 models activate {artifact.id}")


@app.command()
def activate(model: Model, *, force: Force = False, home: Home = None) -> None:
    """Verify a version and make it the active one; the service uses it from its next start."""
    store = ModelStore(load_settings(home=home).home)
    artifact = store.resolve(model, verify=False)
    if not force:
        require_better_than_baseline(artifact)
    store.activate(artifact.name, artifact.version)
    _print_active(store)


@app.command()
def rollback(*, home: Home = None) -> None:
    """Make the previously active version the active one again."""
    store = ModelStore(load_settings(home=home).home)
    store.rollback()
    _print_active(store)


def _print_active(store: ModelStore) -> None:
    active = store.active()
    if active is not None:
        previous = f" (previous: {active.previous})" if active.previous else ""
        console.show(f"[green]{active.active}[/] is the active version{previous}.")
    console.next_step("fc7 serve; if the index has vectors of another model, fc7 index reembed first")


def _explain_f32(artifacts: Sequence[Artifact]) -> None:
    """Say which versions OpenVINO does not run in bf16, and why."""
    reasons: dict[str, list[str]] = {}
    for artifact in artifacts:
        if (obstacle := bf16_obstacle(artifact)) is not None:
            reasons.setdefault(obstacle, []).append(artifact.id)
    for obstacle, ids in reasons.items():
        console.say(f"{', '.join(ids)}: f32 on CPUs, because {obstacle}.")


def _active_id(store: ModelStore) -> str | None:
    active = store.active()
    return None if active is None else str(active.active)


def _summary(artifact: Artifact) -> dict[str, Any]:
    manifest = artifact.manifest
    return {
        "name": artifact.name,
        "version": artifact.version,
        "created": manifest.created.isoformat(),
        "classes": len(artifact.labels),
        "bytes": _bytes(artifact),
        "fingerprint": artifact.fingerprint,
        "bf16_obstacle": bf16_obstacle(artifact),
        "metrics": manifest.metrics,
    }


def _bytes(artifact: Artifact) -> int:
    return sum(entry.size for entry in artifact.manifest.files.values())


def _share(value: object) -> str:
    return f"{value:.1%}" if isinstance(value, float | int) else "-"


def _class_figures(entry: Mapping[str, Any]) -> str:
    return f"{entry['images']} images, precision {_share(entry['precision'])}, recall {_share(entry['recall'])}"


def _shape(shape: tuple[int | str, ...]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        elif isinstance(value, list) and value and isinstance(value[0], Mapping):
            continue  # a table, which is shown by itself or is in the report
        else:
            yield f"{prefix}{key}", f"{value:.6g}" if isinstance(value, float) else str(value)
