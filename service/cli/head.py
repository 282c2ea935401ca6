"""`fc7 head fit`: fit the last layer to the labeled images of the index, and publish the result as a version.

The index is opened read-only, also while a server is running. torch is not needed.
"""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from index.labels import LABEL_FIELD
from index.records import IndexOptions
from service.cli import console
from service.cli.options import Activate, AsJson, Force, Home, LabelField, ModelOption, Where, find_version
from service.cli.training.export import activate_or_advise
from service.factory import open_index_of, store_of
from service.indexing.head import HeadOptions, HeadResult, fit_and_publish
from service.settings import load_settings

_SHOWN = 40  # classes

app = typer.Typer(name="head", help="Teach a model new classes from labeled images of the index.", no_args_is_help=True)


@app.command()
def fit(
    *,
    model: ModelOption = None,
    field: LabelField = LABEL_FIELD,
    where: Where = None,
    skip_small: Annotated[
        bool, typer.Option("--skip-small", help="Leave out classes with too few images instead of stopping.")
    ] = False,
    activate: Activate = None,
    force: Force = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Fit the last layer to the labeled images of the index, and publish a version; no image is embedded again."""
    settings = load_settings(home=home)
    store = store_of(settings)
    parent = find_version(store, model)
    options = HeadOptions(field, tuple(where or ()), skip_small)
    with (
        open_index_of(settings, IndexOptions(parent.fingerprint, parent.embedder, read_only=True)) as index,
        console.ProgressBar("fitting", "%") as bar,
    ):
        result = fit_and_publish(
            index, store, parent, options, progress=lambda share: bar.update(int(share * 100), 100)
        )
    if as_json:
        console.print_json(result.to_dict())
    else:
        _print(result)
    activate_or_advise(store, result.artifact, activate=activate, force=force)


def _print(result: HeadResult) -> None:
    fitted = result.fitted
    for note in fitted.notes:
        console.warn(note)
    if result.missing_vectors:
        console.warn(f"{result.missing_vectors:,} labeled images have no vector of this model and were not used.")
    if result.unusable:
        console.warn(f"{result.unusable:,} images have a value that cannot be a label, such as a list of several.")
    if fitted.left_out:
        console.warn(f"Classes left out, because they have too few images: {', '.join(fitted.left_out)}.")
    if result.sampled_from is not None:
        console.say(f"{fitted.images:,} of {result.sampled_from:,} labeled images were used.")
    table = Table("class", "images", "precision", "recall", box=None, header_style="dim")
    for entry in fitted.figures.per_class()[:_SHOWN]:
        shares = ("-" if share is None else f"{share:.1%}" for share in (entry.precision, entry.recall))
        table.add_row(entry.label, f"{entry.images:,}", *shares)
    console.show(table)
    console.say(f"By cross-validation: {fitted.figures.summary()}.")
    console.show(f"[green]Published {result.artifact.id}[/] in {result.seconds:.1f} s. The index stays as it is.")
