"""`fc7 import`: publish a version from a weight file of Caffe, the ONNX model zoo, torchvision or cuda-convnet."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.markup import escape

from model_store.durable import locked
from model_store.store import ModelStore
from model_store.training.errors import DownloadError
from model_store.training.importers.download import PUBLIC_FILES, fetch
from service.cli import console
from service.cli.data.unpack import data_folder
from service.cli.options import Activate, Home
from service.cli.training.export import activate_or_advise
from service.factory import decode_limits
from service.settings import Settings, load_settings

if TYPE_CHECKING:
    from model_store.training.importers.imported_net import ImportedNet

IMAGENET: Final = "imagenet"  # the model that `fc7 train --from imagenet` starts from
app = typer.Typer(name="import", help="Publish a version from public AlexNet weights.", no_args_is_help=True)


def _names(kind: str) -> str:
    return ", ".join(PUBLIC_FILES[kind])


def _download_option(kind: str) -> Any:
    return typer.Option("--download", help=f"Download a public file: {_names(kind)}.")


File = Annotated[
    str | None,
    typer.Argument(metavar="FILE", help="Weight file; with --download, the name of a public one.", show_default=False),
]
Mean = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|B,G,R", help="Mean image (.binaryproto) or mean color.", show_default="ImageNet's mean color"
    ),
]
Labels = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="Class names: one per line, numbered, with WordNet IDs, or as JSON.",
        show_default="ImageNet's labels if there are 1,000 classes",
    ),
]
Photographs = Annotated[
    Path | None,
    typer.Option(
        metavar="SOURCE",
        help="At least 100 photographs, as for fc7 train, like those that the model will see: bf16 is compared with "
        "f32 on them, and images unlike them are answered as unknown.",
        show_default="none; the model runs in f32 and has no novelty",
    ),
]
Name = Annotated[str | None, typer.Option(help="Name of the model.", show_default="the file's name")]


@app.command()
def caffe(
    file: File = None,
    *,
    mean: Mean = None,
    labels: Labels = None,
    photographs: Photographs = None,
    name: Name = None,
    caffenet: Annotated[
        bool, typer.Option("--caffenet", help="Pool before normalizing, for a file that does not define the order.")
    ] = False,
    download: Annotated[bool, _download_option("caffe")] = False,
    activate: Activate = None,
    home: Home = None,
) -> None:
    """Import Caffe's bvlc_alexnet or bvlc_reference_caffenet (.caffemodel), or a net with the same layers."""
    from model_store.training.importers.caffe import read_caffemodel  # noqa: PLC0415 - torch

    _import(
        "caffe", file, lambda path: read_caffemodel(path, mean=mean, caffenet=caffenet), labels, name,
        photographs=photographs, download=download, activate=activate, home=home,
    )  # fmt: skip


@app.command()
def onnx(
    file: File = None,
    *,
    mean: Mean = None,
    labels: Labels = None,
    photographs: Photographs = None,
    name: Name = None,
    download: Annotated[bool, _download_option("onnx")] = False,
    activate: Activate = None,
    home: Home = None,
) -> None:
    """Import bvlcalexnet or caffenet of the ONNX model zoo, or an export of torchvision's alexnet by torch.onnx."""
    from model_store.training.importers.onnx_net import read_onnx  # noqa: PLC0415 - torch

    _import(
        "onnx", file, lambda path: read_onnx(path, mean=mean), labels, name,
        photographs=photographs, download=download, activate=activate, home=home,
    )  # fmt: skip


@app.command()
def torchvision(
    file: File = None,
    *,
    labels: Labels = None,
    photographs: Photographs = None,
    name: Name = None,
    download: Annotated[bool, _download_option("torchvision")] = False,
    activate: Activate = None,
    home: Home = None,
) -> None:
    """Import torchvision's alexnet (.pth, .ckpt or .safetensors), the net of the paper "One weird trick"."""
    from model_store.training.importers.torchvision import read_torchvision  # noqa: PLC0415 - torch

    _import(
        "torchvision",
        file,
        read_torchvision,
        labels,
        name,
        photographs=photographs,
        download=download,
        activate=activate,
        home=home,
    )


@app.command("cuda-convnet")
def cuda_convnet(
    file: Annotated[str, typer.Argument(metavar="FILE", help="Checkpoint, or a folder of them.", show_default=False)],
    *,
    mean: Annotated[
        str | None,
        typer.Option(
            metavar="FILE|B,G,R", help="Its batches.meta, or a mean color.", show_default="ImageNet's mean color"
        ),
    ] = None,
    labels: Labels = None,
    photographs: Photographs = None,
    name: Name = None,
    activate: Activate = None,
    home: Home = None,
) -> None:
    """Import a checkpoint of cuda-convnet, the original code of the paper's net."""
    from model_store.training.importers.cuda_convnet import read_cuda_convnet  # noqa: PLC0415 - torch

    _import(
        "cuda-convnet", file, lambda path: read_cuda_convnet(path, mean=mean), labels, name,
        photographs=photographs, download=False, activate=activate, home=home,
    )  # fmt: skip


def imagenet_version(settings: Settings) -> str:
    """Return the version `imagenet`. If there is none, download torchvision's weights and publish them as it.

    Raises DownloadError, which says how to get the file by hand if there is no network.
    """
    from model_store.training.importers.labels import labels_for  # noqa: PLC0415
    from model_store.training.importers.publish import publish_import  # noqa: PLC0415 - torch
    from model_store.training.importers.torchvision import read_torchvision  # noqa: PLC0415

    store, folder = ModelStore(settings.home), settings.home / "downloads"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".imagenet.lock"):  # each process of torchrun asks for it
        found = [artifact for artifact in store.list() if artifact.name == IMAGENET]
        if found:
            return found[-1].id
        console.say(f"Importing weights that were trained on ImageNet, once, as the model {IMAGENET}.")
        try:
            path = _download("torchvision", None, folder)
        except DownloadError as error:
            public = next(iter(PUBLIC_FILES["torchvision"].values()))
            fix = (
                f"To import it by hand, run the first two commands on a machine with a network, copy the file to this "
                f"machine, run the third one here, and then the same command again:\n"
                f"    curl -LO {public.url}\n"
                f"    {public.algorithm}sum {public.file}    # {public.digest}\n"
                f"    fc7 import {public.command} {public.file} --name {IMAGENET} --no-activate "
                f"--home {shlex.quote(str(settings.home.absolute()))}\n"
                "A net of torchvision that was trained on other images works too, under its own name: --from NAME"
            )
            raise DownloadError(error.address, error.reason, fix) from error
        with console.open_console(stderr=True).status("importing") as status:
            net = read_torchvision(path)
            labels = labels_for(net.architecture.classes)
            return publish_import(net, store, labels, name=IMAGENET, progress=status.update).artifact.id


def _import(
    kind: str,
    file: str | None,
    read: Callable[[Path], ImportedNet],
    labels: Path | None,
    name: str | None,
    *,
    photographs: Path | None,
    download: bool,
    activate: bool | None,
    home: Path | None,
) -> None:
    from model_store.training.evaluate import SplitImages  # noqa: PLC0415 - torch
    from model_store.training.importers.labels import labels_for  # noqa: PLC0415
    from model_store.training.importers.publish import publish_import  # noqa: PLC0415

    settings = load_settings(home=home)
    if download:
        path = _download(kind, file, settings.home / "downloads")
    elif file is None:
        raise typer.BadParameter(f"give a FILE, or --download and one of: {_names(kind)}.", param_hint="FILE")
    else:
        path = Path(file)
    store = ModelStore(settings.home)
    images = None
    if photographs is not None:
        images = SplitImages(data_folder(photographs, settings.home), "all", decode_limits(settings))
    with console.open_console(stderr=True).status("reading") as status:
        net = read(path)
        found = labels_for(net.architecture.classes, labels)
        imported = publish_import(net, store, found, name=name, photographs=images, progress=status.update)
    artifact = imported.artifact
    console.show(
        f"[green]Published {artifact.id}[/]: {net.architecture.name}, {len(artifact.labels):,} classes. "
        f"Probabilities differ from torch's by at most {imported.parity.probabilities:.1e}."
    )
    console.show(f"labels: {escape(imported.labels.origin)}")
    console.show(f"pixels: {escape(net.preprocessing)}")
    for remark in net.remarks:
        console.show(f"[yellow]note:[/] {escape(remark)}")
    activate_or_advise(store, artifact, activate=activate)


def _download(kind: str, name: str | None, folder: Path) -> Path:
    known = PUBLIC_FILES[kind]
    chosen = next(iter(known)) if name is None else name
    if chosen not in known:
        raise typer.BadParameter(f"{chosen} is not a public file: choose one of {_names(kind)}.", param_hint="FILE")
    public = known[chosen]
    with console.ProgressBar(public.file, "bytes", total=public.size) as bar:
        return fetch(public, folder, bar.update)
