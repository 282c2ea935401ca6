"""`fc7 import`: make a version of a public weight file: Caffe's, the ONNX zoo's or torchvision's.

Does not: import torch unless one of its commands runs; the serving installation has no torch, and says so.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import structlog
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from model_store.store import ModelStore
from model_store.training.importers.download import PUBLIC_FILES, fetch
from service.cli.extras import training_extra
from service.settings import load_settings

if TYPE_CHECKING:
    from model_store.training.importers.imported_net import ImportedNet

DOWNLOADS = "downloads"  # below FC7_HOME

app = typer.Typer(name="import", help="Make a version of a public AlexNet's weight file.", no_args_is_help=True)


def _names(kind: str) -> str:
    return ", ".join(PUBLIC_FILES[kind])


Home = Annotated[Path | None, typer.Option(help="Folder of all state [FC7_HOME].", show_default=False)]
File = Annotated[
    str | None, typer.Argument(metavar="FILE", help="The weight file; with --download its name.", show_default=False)
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|B,G,R",
        help="Mean image (.binaryproto) or colour; ImageNet's mean colour by default.",
        show_default=False,
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="One class name a line; ImageNet's by default for 1,000 classes.", show_default=False
    ),
]
Name = Annotated[str | None, typer.Option(help="The model's name; the file's by default.", show_default=False)]
Activate = Annotated[
    bool | None,
    typer.Option("--activate/--no-activate", help="Serve it from now on; by default if none is.", show_default=False),
]


@app.command()
def caffe(
    file: File = None,
    *,
    mean: Mean = None,
    labels: Labels = None,
    name: Name = None,
    caffenet: Annotated[
        bool, typer.Option("--caffenet", help="Pools come before norms, for a file that does not tell.")
    ] = False,
    download: Annotated[bool, typer.Option("--download", help=f"Fetch it first: {_names('caffe')}.")] = False,
    activate: Activate = None,
    home: Home = None,
) -> None:
    """Import Caffe's bvlc_alexnet or bvlc_reference_caffenet (.caffemodel), or a net of the same layers."""
    with training_extra():
        from model_store.training.importers.caffe import read_caffemodel  # noqa: PLC0415 - torch
    _import(
        "caffe", file, lambda path: read_caffemodel(path, mean=mean, caffenet=caffenet), labels, name,
        download=download, activate=activate, home=home,
    )  # fmt: skip


@app.command()
def onnx(
    file: File = None,
    *,
    mean: Mean = None,
    labels: Labels = None,
    name: Name = None,
    download: Annotated[bool, typer.Option("--download", help=f"Fetch it first: {_names('onnx')}.")] = False,
    activate: Activate = None,
    home: Home = None,
) -> None:
    """Import the ONNX zoo's bvlcalexnet or caffenet (.onnx)."""
    with training_extra():
        from model_store.training.importers.onnx_zoo import read_onnx  # noqa: PLC0415 - torch
    _import(
        "onnx", file, lambda path: read_onnx(path, mean=mean), labels, name,
        download=download, activate=activate, home=home,
    )  # fmt: skip


@app.command()
def torchvision(
    file: File = None,
    *,
    labels: Labels = None,
    name: Name = None,
    download: Annotated[bool, typer.Option("--download", help=f"Fetch it first: {_names('torchvision')}.")] = False,
    activate: Activate = None,
    home: Home = None,
) -> None:
    """Import torchvision's alexnet (.pth or .safetensors): the net of "One weird trick", not the paper's."""
    with training_extra():
        from model_store.training.importers.torchvision import read_torchvision  # noqa: PLC0415 - torch
    _import("torchvision", file, read_torchvision, labels, name, download=download, activate=activate, home=home)


def _import(
    kind: str,
    file: str | None,
    read: Callable[[Path], ImportedNet],
    labels: Path | None,
    name: str | None,
    *,
    download: bool,
    activate: bool | None,
    home: Path | None,
) -> None:
    with training_extra():
        from model_store.training.importers.labels import labels_for  # noqa: PLC0415
        from model_store.training.importers.publish import publish_import  # noqa: PLC0415 - torch
    # Standard output is for answers: what the runner logs when it loads stays away from it.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    settings = load_settings(home=home)
    console = Console(soft_wrap=True, highlight=False)
    path = _download(kind, file, settings.home / DOWNLOADS) if download else _given(kind, file)
    store = ModelStore(settings.home)
    with Console(stderr=True).status("reading") as status:
        net = read(path)
        imported = publish_import(
            net, store, labels_for(net.architecture.classes, labels), name=name, progress=status.update
        )
    artifact = imported.artifact
    console.print(
        f"published [bold]{artifact.id}[/]: {net.architecture.name}, {len(artifact.labels):,} classes; "
        f"{imported.parity.probabilities:.1e} from torch in probabilities"
    )
    console.print(f"labels: {escape(imported.labels.origin)}")
    console.print(f"pixels: {escape(net.preprocessing)}")
    for remark in net.remarks:
        console.print(f"[yellow]note:[/] {escape(remark)}")
    if activate or (activate is None and store.active() is None):
        store.activate(artifact.name, artifact.version)
        console.print(f"{artifact.id} is the active version")
    else:
        console.print(f"to serve it: fc7 models activate {artifact.id}")


def _given(kind: str, file: str | None) -> Path:
    if file is None:
        raise typer.BadParameter(f"give a FILE, or --download for one of: {_names(kind)}", param_hint="FILE")
    return Path(file)


def _download(kind: str, name: str | None, folder: Path) -> Path:
    known = PUBLIC_FILES[kind]
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise typer.BadParameter(f"{chosen} is not in the table: {_names(kind)}", param_hint="FILE")
    public = known[chosen]
    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, TimeRemainingColumn(), console=Console(stderr=True)) as bar:
        task = bar.add_task(public.file, total=public.size)
        return fetch(public, folder, lambda done, total: bar.update(task, completed=done, total=total))
