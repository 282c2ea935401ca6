"""`fc7 backup create|list|verify|restore`: everything of a home that cannot be made again, in one folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from index.catalog.backup import snapshot_name
from service import backup
from service.cli import console
from service.cli.options import AsJson, Home
from service.settings import Settings, load_settings

app = typer.Typer(help="Back up models and index, and restore them.", no_args_is_help=True)

Source = Annotated[Path, typer.Argument(metavar="BACKUP", help="Folder of a backup.", show_default=False)]
Folder = Annotated[
    Path | None,
    typer.Option("--folder", metavar="DIR", help="Folder of the backups.", show_default="FC7_HOME/backups"),
]


@app.command()
def create(
    *,
    folder: Folder = None,
    keep: Annotated[
        int | None,
        typer.Option(min=1, help="Keep only that many backups in the folder.", show_default="all"),
    ] = None,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Copy versions, codes and index to a new folder; also while a server is running."""
    settings = load_settings(home=home)
    parent = _folder(settings, folder)
    local = settings.index_uri is None
    with console.ProgressBar("copying", "bytes") as bar:
        target = backup.create_backup(settings.home, parent / snapshot_name(), with_index=local, advance=bar.step)
    manifest = backup.read_backup(target)
    deleted = [] if keep is None else backup.remove_oldest(parent, keep)
    if not local:
        console.warn("The index is on Milvus and not in this backup. Back it up with: milvus-backup create -n NAME")
    console.say(f"{target}: {_contents(manifest)}.")
    for path in deleted:
        console.say(f"{path} was deleted.")
    if as_json:
        document = manifest.model_dump(mode="json", exclude={"files"})
        console.print_json(document | {"path": str(target), "size": manifest.size, "deleted": [*map(str, deleted)]})
    else:
        console.next_step(f"copy it to another disk or machine; fc7 backup verify {target}")


@app.command("list")
def list_all(*, folder: Folder = None, home: Home = None, as_json: AsJson = False) -> None:
    """List backups, oldest first."""
    found = backup.list_backups(_folder(load_settings(home=home), folder))
    if as_json:
        console.print_json(
            [
                entry.model_dump(mode="json", exclude={"files"}) | {"path": str(path), "size": entry.size}
                for path, entry in found
            ]
        )
        return
    table = Table("backup", "created (UTC)", "versions", "active", "images", "MB", box=None, header_style="bold")
    for path, entry in found:
        images = "-" if entry.images is None else f"{entry.images:,}"
        created = f"{entry.created:%Y-%m-%d %H:%M}"
        row = (
            escape(str(path)),
            created,
            str(len(entry.versions)),
            entry.active or "-",
            images,
            f"{entry.size / 1e6:,.1f}",
        )
        table.add_row(*row)
    console.show(table)
    console.next_step("fc7 backup verify BACKUP, or fc7 backup restore BACKUP" if found else "fc7 backup create")


@app.command()
def verify(source: Source) -> None:
    """Compare every file of a backup with its checksum; exit with 1 if one is damaged."""
    with console.ProgressBar("verifying", "bytes") as bar:
        manifest = backup.verify_backup(source, advance=bar.step)
    console.say(f"{source}: {_contents(manifest)}; all checksums match.")
    console.next_step(f"fc7 backup restore {source}")


@app.command()
def restore(
    source: Source,
    home: Home = None,
    *,
    replace: Annotated[
        bool, typer.Option("--replace", help="Move versions and index that FC7_HOME already has to a folder in it.")
    ] = False,
) -> None:
    """Restore a backup to FC7_HOME; not while a server is running."""
    settings = load_settings(home=home)
    with console.ProgressBar("verifying", "bytes") as bar:
        manifest, aside = backup.restore_backup(source, settings.home, replace=replace, advance=bar.step)
    console.say(f"{settings.home}: {_contents(manifest)}.")
    if aside is not None:
        console.say(f"What was there before is in {aside}. Delete it when you no longer need it.")
    console.next_step("fc7 doctor, then fc7 serve")


def _folder(settings: Settings, folder: Path | None) -> Path:
    return settings.home / backup.FOLDER if folder is None else folder


def _contents(manifest: backup.BackupManifest) -> str:
    index = "no index" if manifest.images is None else f"{manifest.images:,} images"
    active = "none active" if manifest.active is None else f"{manifest.active} active"
    return f"{len(manifest.versions)} versions ({active}), {index}, {manifest.size / 1e6:,.1f} MB"
