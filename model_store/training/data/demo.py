"""Arrange the photographs of the installed package `elpv-dataset` as class folders, for the demo and for trials.

2,624 photographs, 300x300, of solar cells under electroluminescence: two types of cell at four levels of defect, hence
eight classes. A fixed fifth of each class is held out as `val`; it depends on file names alone: the same everywhere.
Promises: a second run changes nothing; every copy is whole or absent; source and licence are written beside them.
Does not: download anything, decode or change the photographs.
Source: Buerhop-Lutz et al. 2018; Deitsch et al. 2019, 2021. Licence CC-BY-NC-SA 4.0.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_store.durable import write_atomic
from model_store.errors import DatasetError, MissingExtraError

PACKAGE: Final = "elpv_dataset"
HELD_OUT: Final = 5  # every fifth of a class
# By the expert's probability of a defect, in the four steps of the data set.
LEVELS: Final[Mapping[str, str]] = {
    "0.00": "sound",
    "0.33": "possibly defective",
    "0.67": "likely defective",
    "1.00": "defective",
}
SOURCE_FILE: Final = "SOURCE.md"
SOURCE: Final = """\
# Solar cells under electroluminescence

2,624 photographs of mono- and polycrystalline solar cells, each judged by an expert (ELPV dataset), copied unchanged
from the PyPI package `elpv-dataset`: https://github.com/zae-bayern/elpv-dataset

Classes: the type of cell and the level of defect (probability 0: sound; .33: possibly defective; .67: likely
defective; 1: defective). `val` is a fixed fifth of each class.

Licence: Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International (CC-BY-NC-SA 4.0): not for commercial
use. A model trained on it is for trying fc7 out.

- C. Buerhop-Lutz, S. Deitsch, A. Maier, F. Gallwitz, S. Berger, B. Doll, J. Hauch, C. Camus, C. J. Brabec. A Benchmark
  for Visual Identification of Defective Solar Cells in Electroluminescence Imagery. EU PVSEC 2018.
- S. Deitsch, V. Christlein, S. Berger, C. Buerhop-Lutz, A. Maier, F. Gallwitz, C. Riess. Automatic classification of
  defective photovoltaic module cells in electroluminescence images. Solar Energy 185, 2019.
- S. Deitsch, C. Buerhop-Lutz, E. Sovetkin, A. Steland, A. Maier, F. Gallwitz, C. Riess. Segmentation of photovoltaic
  module cells in uncalibrated electroluminescence images. Machine Vision and Applications 32, 2021.
"""


@dataclass(frozen=True, slots=True)
class Arranged:
    """What `arrange_demo` left in its folder: photographs of each split by class, and how many it had to copy."""

    folder: Path
    train: Mapping[str, int]
    val: Mapping[str, int]
    copied: int


def arrange_demo(folder: Path) -> Arranged:
    """Copy the photographs to `folder`/{train,val}/<class>/, leaving those that are there.

    Raises MissingExtraError when `elpv-dataset` is not installed, DatasetError when it is not the one expected or the
    folder cannot be written.
    """
    data = _package_data()
    members = _by_class(data / "labels.csv")
    counts: dict[str, dict[str, int]] = {"train": {}, "val": {}}
    copied = 0
    try:
        for label, names in members.items():
            held_out = set(sorted(names, key=_draw)[: round(len(names) / HELD_OUT)])
            for name in names:
                split = "val" if name in held_out else "train"
                counts[split][label] = counts[split].get(label, 0) + 1
                copied += _copy(data / name, folder / split / label / Path(name).name)
        write_atomic(folder / SOURCE_FILE, SOURCE.encode())
    except OSError as error:
        raise DatasetError(f"the demo's photographs cannot be copied to {folder}: {error}") from error
    return Arranged(folder, counts["train"], counts["val"], copied)


def _package_data() -> Path:
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("elpv-dataset", "demo")
    return Path(spec.origin).parent / "data"


def _by_class(labels: Path) -> dict[str, list[str]]:
    """Return the photographs' paths, relative to the package's data, by class in alphabetical order."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    try:
        rows = list(csv.reader(labels.read_text(encoding="utf-8").splitlines(), delimiter=" ", skipinitialspace=True))
        for name, probability, kind in rows:
            members[f"{kind}, {LEVELS[f'{float(probability):.2f}']}"].append(name)
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{labels} is not the list of elpv-dataset 1.0: {error!r}") from error
    return {label: sorted(members[label]) for label in sorted(members)}


def _draw(name: str) -> bytes:
    """Return a fixed, arbitrary place in the order of drawing, the same on every machine."""
    return hashlib.sha256(Path(name).name.encode()).digest()


def _copy(source: Path, target: Path) -> bool:
    content = source.read_bytes()
    if target.is_file() and target.stat().st_size == len(content):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    # A copy can be made again, so it need not be synced; the rename keeps a killed run from leaving half a file.
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(target)
    return True
