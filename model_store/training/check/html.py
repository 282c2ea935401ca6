"""The report of a check as one HTML page with pictures.

Guarantees: the page loads nothing from elsewhere: pictures are embedded. Text from the data set is escaped.
Out of scope: pictures that cannot be read, which are listed by name.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterable, Sequence
from html import escape
from typing import Final

from PIL import Image

from model_store.decoder.decoder import Decoder
from model_store.image_files import Skipped, summarize
from model_store.training.check.findings import Group, Picture, Report
from model_store.training.data.image_file import load_image

_SIDE: Final = 128  # pixels of a picture
_MOST_PICTURES: Final = 60  # in a section
_MOST_IN_GROUP: Final = 6
_MOST_FILES: Final = 1_000  # that are not used
_STYLE: Final = """
:root { color-scheme: light dark; font: 15px/1.45 system-ui, sans-serif; }
body { max-width: 70rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; } td, th { padding: .2rem .8rem .2rem 0; text-align: left; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.pictures { display: flex; flex-wrap: wrap; gap: .8rem; }
.group { display: flex; flex-wrap: wrap; gap: .4rem; padding: .4rem; border: 1px solid #8886; border-radius: 6px; }
figure { margin: 0; width: 8.5rem; font-size: 12px; overflow-wrap: anywhere; }
figure img { width: 8rem; height: 8rem; display: block; border-radius: 4px; }
.warning { border-left: 4px solid #d90; padding-left: .7rem; }
"""


def render(report: Report, decoder: Decoder) -> str:
    """Return the page."""
    draw = _Thumbnails(decoder).draw
    leaks, conflicts = report.select(leaks=True), report.select(conflicts=True)
    parts = [
        f"<h1>Check of {escape(report.source)}</h1>",
        f"<p>{report.images:,} pictures in {len(report.classes):,} classes. "
        f"Pictures were compared by {escape(report.features)}.</p>",
        *(f'<p class="warning">{escape(text)}</p>' for text in [*report.problems, *report.notes]),
        _class_table(report),
        _skipped(report.skipped),
        _section(
            "Leaks between splits",
            len(leaks),
            "The same picture is in several splits, so the validation error will be too low. Keep one of them.",
            (_group(group, draw) for group in leaks[:_MOST_PICTURES]),
        ),
        _section(
            "The same picture in two classes",
            len(conflicts),
            "One of the labels is wrong. Keep the right one.",
            (_group(group, draw) for group in conflicts[:_MOST_PICTURES]),
        ),
        _wrong_labels(report, draw),
        _section(
            "Outliers",
            len(report.outliers),
            "Pictures unlike all others: damaged, or not of this subject.",
            (
                draw(item.picture, f"{item.picture.image.label}, {item.ratio:.1f} times the usual distance")
                for item in report.outliers[:_MOST_PICTURES]
            ),
        ),
        _section(
            "Copies and near-identical pictures",
            len(report.groups),
            "In one split and class they only give these pictures more weight.",
            (_group(group, draw) for group in report.groups[:_MOST_PICTURES]),
        ),
        _section(
            "Very small pictures",
            len(report.small),
            "They are enlarged, and little is left to learn from.",
            (draw(picture, picture.image.label) for picture in report.small[:_MOST_PICTURES]),
        ),
    ]
    head = f'<meta charset="utf-8"><title>Data check</title><style>{_STYLE}</style>'
    return f"<!doctype html><html lang=en><head>{head}</head><body>{''.join(parts)}</body></html>\n"


def _wrong_labels(report: Report, draw: Callable[[Picture, str], str]) -> str:
    if report.labels_note:
        return f'<h2>Likely wrong labels: not judged</h2><p class="warning">{escape(report.labels_note)}</p>'
    return _section(
        "Likely wrong labels",
        len(report.labels.wrong),
        f"By a classifier that agrees with {report.labels.accuracy:.0%} of {report.labels.judged:,} labels, the most "
        "suspicious first. At most one in 20 labels (or 10) is listed: correct the wrong ones, and check again.",
        (
            draw(
                item.picture,
                f"{item.picture.image.label} ({item.own:.0%}), looks like {item.suggested} ({item.other:.0%})",
            )
            for item in report.labels.wrong[:_MOST_PICTURES]
        ),
    )


def _class_table(report: Report) -> str:
    heads = "".join(f'<th class="number">{escape(split)}</th>' for split in report.counts)
    rows = "".join(
        f"<tr><td>{escape(label)}</td>"
        + "".join(f'<td class="number">{counts[label]:,}</td>' for counts in report.counts.values())
        + "</tr>"
        for label in report.classes
    )
    return f"<h2>Classes</h2><table><tr><th>class</th>{heads}</tr>{rows}</table>"


def _skipped(skipped: Sequence[Skipped]) -> str:
    lines = "".join(f"<li>{escape(line)}</li>" for line in summarize(skipped))
    files = "".join(f"<li>{escape(item.path)}: {escape(item.reason)}</li>" for item in skipped[:_MOST_FILES])
    more = f"<p>The JSON report lists {len(skipped) - _MOST_FILES:,} more.</p>" if len(skipped) > _MOST_FILES else ""
    every = f"<details><summary>Every file</summary><ul>{files}</ul>{more}</details>" if skipped else ""
    return f"<h2>Files that are not used: {len(skipped):,}</h2><ul>{lines}</ul>{every}"


def _section(title: str, count: int, text: str, figures: Iterable[str]) -> str:
    if not count:
        return f"<h2>{title}: none</h2>"
    shown = list(figures)
    more = f"<p>The first {len(shown):,} of them. The JSON report lists all.</p>" if count > len(shown) else ""
    return f'<h2>{title}: {count:,}</h2><p>{escape(text)}</p><div class="pictures">{"".join(shown)}</div>{more}'


def _group(group: Group, draw: Callable[[Picture, str], str]) -> str:
    shown = group.pictures[:_MOST_IN_GROUP]
    figures = "".join(draw(picture, f"{picture.split}: {picture.image.label}") for picture in shown)
    more = f"<p>and {len(group.pictures) - len(shown):,} more</p>" if len(group.pictures) > len(shown) else ""
    return f'<div class="group">{figures}{more}</div>'


class _Thumbnails:
    """Draws pictures; each file is read once."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self._drawn: dict[Picture, str] = {}

    def draw(self, picture: Picture, text: str) -> str:
        """Return a figure with the picture, its path and a text."""
        if picture not in self._drawn:
            loaded = load_image(picture.image, self._decoder)
            self._drawn[picture] = "" if isinstance(loaded, Skipped) else _data_uri(Image.fromarray(loaded.pixels))
        name = escape(picture.image.name)
        return (
            f'<figure><img src="{self._drawn[picture]}" alt="" loading="lazy"><figcaption>{escape(text)}<br>{name}'
            "</figcaption></figure>"
        )


def _data_uri(picture: Image.Image) -> str:
    stream = io.BytesIO()
    picture.resize((_SIDE, _SIDE)).save(stream, "JPEG", quality=80)
    return f"data:image/jpeg;base64,{base64.b64encode(stream.getvalue()).decode()}"
