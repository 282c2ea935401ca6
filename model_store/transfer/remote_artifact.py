"""A version without its folder: manifest, graph and weights as values, for a worker on another machine.

Guarantees: the bytes that a runner loads match the manifest, however they were transferred.
Out of scope: the report and other precisions, writing files, the transfer itself.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import Artifact
from model_store.errors import ArtifactCorruptError
from model_store.manifest import MANIFEST_FILE, Manifest, graph_files, read_manifest


@dataclass(frozen=True, slots=True)
class ShippedVersion:
    """One precision of a version, for one engine.

    manifest: the bytes of manifest.json. files: graph and weights, uint8 [bytes].
    """

    manifest: bytes
    precision: str
    engine: str
    files: Mapping[str, NDArray[np.uint8]]


def ship(artifact: Artifact) -> ShippedVersion:
    """Read the files that a runner needs for this version. Raises ArtifactCorruptError, ArtifactFormatError."""
    names = graph_files(artifact.precision)
    return ShippedVersion(
        artifact.manifest.to_bytes(),
        artifact.precision,
        artifact.engine,
        {name: np.frombuffer(artifact.read(name), np.uint8) for name in sorted(names)},
    )


class ShippedArtifact(Artifact):
    """A received version. `Runner` accepts it like a version on disk."""

    def __init__(self, version: ShippedVersion) -> None:
        """Raises ArtifactFormatError if this fc7 cannot read the manifest."""
        manifest: Manifest = read_manifest(Path(MANIFEST_FILE), version.manifest)
        path = Path("shipped") / manifest.name / str(manifest.version)
        super().__init__(path, manifest, verified=True, precision=version.precision, engine=version.engine)
        self._files = version.files

    def read(self, name: str) -> bytes:
        """Return the bytes of a file after comparing them with the manifest. Raises ArtifactCorruptError."""
        content, expected = self._files[name].tobytes(), self.manifest.files[name].sha256
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ArtifactCorruptError(self.path / name, expected, found)
        return content

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Write the files into a temporary folder, and yield the path of the graph there."""
        with TemporaryDirectory(prefix="fc7-version-") as folder:
            for name in self._files:
                path = Path(folder) / PurePosixPath(name).name  # the graph refers to its weights without a folder
                path.write_bytes(self.read(name))
            yield Path(folder) / PurePosixPath(graph_files(self.precision)[0]).name
