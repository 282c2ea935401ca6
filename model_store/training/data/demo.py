"""The demo data set: class folders with the photographs of the installed package `elpv-dataset`.

These are 2,624 photographs (300x300) of solar cells under electroluminescence, of two types of cell with four levels of
defect, which gives eight classes. A fixed fifth of each class is held out as `val`, chosen by file names.
Guarantees: running it again changes nothing. Every copy is complete or absent. Source and license are stored with
the photographs.
References: Buerhop-Lutz et al. 2018; Deitsch et al. 2019, 2021. License CC-BY-NC-SA 4.0.
"""

from __future__ import annotations

import csv
import hashlib
import importlib.util
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from model_store.durable import write_atomic
from model_store.errors import DatasetError, MissingExtraError

PACKAGE: Final = "elpv_dataset"
HELD_OUT: Final = 5  # one in five photographs of a class
# By the probability of a defect, as judged by the expert.
LEVELS: Final = {"0.00": "sound", "0.33": "possibly defective", "0.67": "likely defective", "1.00": "defective"}
SOURCE_FILE: Final = "SOURCE.md"
SOURCE: Final = """\
# Solar cells under electroluminescence

2,624 photographs of mono- and polycrystalline solar cells, each judged by an expert (ELPV dataset). They are unchanged
copies from the PyPI package `elpv-dataset`: https://github.com/zae-bayern/elpv-dataset

Each class combines the type of cell and the level of defect (probability 0: sound; 0.33: possibly defective; 0.67:
likely defective; 1: defective). `val` is a fixed fifth of each class.

License: Creative Commons Attribution-NonCommercial-ShareAlike 4.0 International (CC-BY-NC-SA 4.0). Commercial use is
not allowed. Use a model trained on these photographs only to try out fc7.

- C. Buerhop-Lutz, S. Deitsch, A. Maier, F. Gallwitz, S. Berger, B. Doll, J. Hauch, C. Camus, C. J. Brabec. A Benchmark
  for Visual Identification of Defective Solar Cells in Electroluminescence Imagery. EU PVSEC 2018.
- S. Deitsch, V. Christlein, S. Berger, C. Buerhop-Lutz, A. Maier, F. Gallwitz, C. Riess. Automatic classification of
  defective photovoltaic module cells in electroluminescence images. Solar Energy 185, 2019.
- S. Deitsch, C. Buerhop-Lutz, E. Sovetkin, A. Steland, A. Maier, F. Gallwitz, C. Riess. Segmentation of photovoltaic
  module cells in uncalibrated electroluminescence images. Machine Vision and Applications 32, 2021.
"""


@dataclass(frozen=True, slots=True)
class DemoData:
    """The result of `copy_demo`: the number of photographs by class in each split, and how many were copied."""

    folder: Path
    train: Mapping[str, int]
    val: Mapping[str, int]
    copied: int


def copy_demo(folder: Path) -> DemoData:
    """Copy the photographs to `folder`/{train,val}/<class>/. Existing copies are kept.

    Raises MissingExtraError if `elpv-dataset` is not installed, DatasetError if its version is not supported or the
    folder cannot be written.
    """
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise MissingExtraError("elpv-dataset", "demo")
    data = Path(spec.origin).parent / "data"
    members = _by_class(data / "labels.csv")
    counts: dict[str, Counter[str]] = {"train": Counter(), "val": Counter()}
    copied = 0
    try:
        for label, names in members.items():
            # The hash gives a fixed, arbitrary order, the same on every machine.
            shuffled = sorted(names, key=lambda name: hashlib.sha256(Path(name).name.encode()).digest())
            held_out = set(shuffled[: round(len(names) / HELD_OUT)])
            for name in names:
                split = "val" if name in held_out else "train"
                counts[split][label] += 1
                copied += _copy(data / name, folder / split / label / Path(name).name)
        write_atomic(folder / SOURCE_FILE, SOURCE.encode())
    except OSError as error:
        raise DatasetError(f"Cannot copy the demo photographs to {folder}: {error}.") from error
    return DemoData(folder, counts["train"], counts["val"], copied)


def _by_class(labels: Path) -> dict[str, list[str]]:
    """Return the paths of the photographs by class, in alphabetical order, relative to the data of the package."""
    members: defaultdict[str, list[str]] = defaultdict(list)
    try:
        rows = list(csv.reader(labels.read_text(encoding="utf-8").splitlines(), delimiter=" ", skipinitialspace=True))
        for name, probability, kind in rows:
            members[f"{kind}, {LEVELS[f'{float(probability):.2f}']}"].append(name)
    except (OSError, ValueError, KeyError) as error:
        raise DatasetError(f"{labels} is not the label list of elpv-dataset 1.0: {error!r}.") from error
    return {label: sorted(members[label]) for label in sorted(members)}


def _copy(source: Path, target: Path) -> bool:
    content = source.read_bytes()
    if target.is_file() and target.stat().st_size == len(content):
        return False
    target.parent.mkdir(parents=True, exist_ok=True)
    # No fsync, since the file can be copied again. The rename prevents partial files if the process is killed.
    temporary = target.with_name(f".{target.name}.tmp")
    temporary.write_bytes(content)
    temporary.replace(target)
    return True
