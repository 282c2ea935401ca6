"""A version that travels without its folder: manifest, graph and weights as values, for a worker on another machine.

Promises: what a runner loads from it is, byte for byte, what the manifest describes, wherever the bytes went between.
Does not: carry the report or other precisions, write files, know how the bytes travel.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model_store.artifact import MANIFEST_FILE, Artifact, Manifest, graph_files, read_manifest
from model_store.errors import ArtifactCorruptError


@dataclass(frozen=True, slots=True)
class ShippedVersion:
    """One precision of a version. manifest: the bytes of manifest.json; files: graph and weights, uint8 [bytes]."""

    manifest: bytes
    precision: str
    files: Mapping[str, NDArray[np.uint8]]


def ship(artifact: Artifact) -> ShippedVersion:
    """Read what running this version in its precision takes. Raises ArtifactCorruptError, ArtifactFormatError."""
    names = {*graph_files(artifact.precision), *(artifact.batches or ())}
    return ShippedVersion(
        artifact.manifest.to_bytes(),
        artifact.precision,
        {name: np.frombuffer(artifact.read(name), np.uint8) for name in sorted(names)},
    )


class ShippedArtifact(Artifact):
    """What arrived of a version: `Runner` takes it like one on disk."""

    def __init__(self, version: ShippedVersion) -> None:
        """Raises ArtifactFormatError for a manifest that this fc7 cannot read."""
        manifest: Manifest = read_manifest(Path(MANIFEST_FILE), version.manifest)
        place = Path("shipped") / manifest.name / str(manifest.version)
        super().__init__(place, manifest, verified=True, precision=version.precision)
        self._files = version.files

    def read(self, name: str) -> bytes:
        """Return a file's bytes, compared with the manifest. Raises ArtifactCorruptError."""
        content, expected = self._files[name].tobytes(), self.manifest.files[name].sha256
        found = hashlib.sha256(content).hexdigest()
        if found != expected:
            raise ArtifactCorruptError(self.path / name, expected, found)
        return content
