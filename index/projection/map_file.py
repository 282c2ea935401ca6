"""Maps on disk: one file for each model, derived from the index, so it can be deleted at any time.

Guarantees: a file is complete or absent. A file that is damaged, or of another version of fc7, is read as missing.
"""

from __future__ import annotations

import io
import json
import zipfile
from pathlib import Path
from typing import Final

import numpy as np

from index.projection.index_map import IndexMap, Method
from index.projection.plane import Plane
from model_store.durable import write_atomic

_FORMAT: Final = 1


def save(path: Path, saved: IndexMap) -> None:
    """Write a map. Raises OSError."""
    about = {
        "format": _FORMAT,
        "method": saved.method,
        "created": saved.created,
        "fitted": saved.fitted,
        "computed": saved.computed,
        "scale": saved.plane.scale,
        "keys": list(saved.rows),
        "hashes": [saved.hashes[row] for row in saved.rows.values()],
    }
    rows = list(saved.rows.values())
    buffer = io.BytesIO()
    np.savez(
        buffer,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        mean=saved.plane.mean,
        axes=saved.plane.axes,
        components=saved.components[rows],
        positions=saved.positions[rows],
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, buffer.getvalue())


def load(path: Path) -> IndexMap | None:
    """Read a map; None if there is none that can be used."""
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as stored:
            about = json.loads(stored["about"].tobytes())
            if about["format"] != _FORMAT:
                return None
            plane = Plane(stored["mean"], stored["axes"], float(about["scale"]))
            components, positions = stored["components"], stored["positions"]
            keys = [str(key) for key in about["keys"]]
            if not len(keys) == len(about["hashes"]) == len(components) == len(positions):
                return None
            return IndexMap(
                plane,
                int(about["fitted"]),
                Method(about["method"]),
                float(about["created"]),
                int(about["computed"]),
                {key: row for row, key in enumerate(keys)},
                list(about["hashes"]),
                components,
                positions,
            )
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
