"""`fc7 index label`: label indexed images.

Out of scope: working through a server. While one has a local index open, use PATCH /v1/images.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from index.filters import parse_field, parse_where
from index.interface import ImageIndex
from index.labels import LABEL_FIELD, label_of
from index.records import IndexOptions, MetadataChanges
from model_store.classes.names import alike, describe_difference
from service.cli import console
from service.cli.options import AsJson, Home, LabelField, Where
from service.factory import open_index_of, read_stats_of
from service.settings import load_settings

_BATCH = 1000  # keys


def label(
    words: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[KEY]... LABEL", help="Keys of images, then their label; LABEL alone with --where or --keys."
        ),
    ] = None,
    *,
    where: Where = None,
    keys_file: Annotated[
        Path | None,
        typer.Option("--keys", metavar="FILE", help="Read keys from FILE, one a line; - for standard input."),
    ] = None,
    field: LabelField = LABEL_FIELD,
    remove: Annotated[bool, typer.Option("--remove", help="Remove the label; all arguments are keys.")] = False,
    home: Home = None,
    as_json: AsJson = False,
) -> None:
    """Write a label into the metadata of images, by key or by a filter; not while a server is running."""
    settings, path, filters = load_settings(home=home), parse_field(field), parse_where(where or [])
    keys, new = list(words or ()), None
    if keys and not remove:
        new = keys.pop()
    if new is None and not remove:
        raise typer.BadParameter("give a label, or --remove.", param_hint="LABEL")
    if new is not None and label_of(new) is None:
        raise typer.BadParameter("the label is empty.", param_hint="LABEL")
    if keys_file is not None:
        text = sys.stdin.read() if str(keys_file) == "-" else keys_file.expanduser().read_text()
        keys += [line for line in text.splitlines() if line]
    if bool(keys) == (filters is not None):
        raise typer.BadParameter("give keys, or --where, and not both.", param_hint="KEY")
    stats = read_stats_of(settings)

    def update(metadata: dict[str, Any]) -> Mapping[str, Any]:
        return _with_label(metadata, path, None if new is None else label_of(new))

    with open_index_of(settings, IndexOptions(stats.fingerprint, stats.model)) as index:
        if filters is not None:
            done = index.change_matching(filters, update)
        else:
            parts = [index.change_keys(keys[start : start + _BATCH], update) for start in range(0, len(keys), _BATCH)]
            done = MetadataChanges(sum(part.matched for part in parts), sum(part.changed for part in parts))
        if new is not None:
            _warn_of_alike(index, field, str(label_of(new)))
    if as_json:
        console.print_json({"matched": done.matched, "changed": done.changed})
        return
    what = "lost their label" if remove else f"got the label {new!r}"
    console.say(f"{done.changed:,} images {what}; {done.matched:,} were named or matched.")
    console.next_step("fc7 classify IMAGE --by neighbours, or fc7 head fit")


def _with_label(metadata: dict[str, Any], path: tuple[str, ...], label: str | None) -> dict[str, Any]:
    """Return the metadata with this value at a path of names; None removes it."""
    name, *rest = path
    if rest:
        inner = metadata.get(name)
        return metadata | {name: _with_label(inner if isinstance(inner, dict) else {}, tuple(rest), label)}
    return metadata | {name: label} if label is not None else {k: v for k, v in metadata.items() if k != name}


def _warn_of_alike(index: ImageIndex, field: str, new: str) -> None:
    """Warn if images have a label that differs from the new one only by case or characters that look alike."""
    found = {
        label
        for batch in index.labelled_vectors(field, only_labelled=True)
        for value in (*batch.values, *batch.missing)
        if (label := label_of(value)) is not None and label != new and alike(label) == alike(new)
    }
    for other in sorted(found):
        console.warn(f"The index also has {describe_difference(other, new)[len('the names ') :]}. They are one class.")
