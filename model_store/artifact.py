"""One version of a model on disk: its files, and the fingerprint of its vectors.

A version is a folder with `manifest.json`, `model.onnx`, `weights.bin` (the graph's external data) and `report/`. It
may also hold the net in other precisions, in the folders `int8` and `fp16`, each with its own graph and weights.
Guarantees: the files of a verified version match the SHA-256 in the manifest; a file that does not is named.
Out of scope: writing (`store`) and loading (`runtime`) versions, signatures that prove who made a version.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from copy import copy
from functools import cached_property
from pathlib import Path
from typing import Final

from model_store.durable import sha256_of
from model_store.errors import ArtifactCorruptError, ArtifactFormatError, PrecisionNotFoundError
from model_store.manifest import FULL, INT8, MANIFEST_FILE, Manifest, fingerprint_of, graph_files, read_manifest

ONNXRUNTIME: Final = "onnxruntime"
OPENVINO: Final = "openvino"
_TITLES: Final = {ONNXRUNTIME: "ONNX Runtime", OPENVINO: "OpenVINO"}


class Artifact:
    """A version on disk in one precision, for one engine.

    engine: "onnxruntime" or "openvino", what will run it. `verified` tells whether its files were compared with the
    manifest.
    """

    def __init__(
        self, path: Path, manifest: Manifest, *, verified: bool, precision: str = FULL, engine: str = ONNXRUNTIME
    ) -> None:
        self.path = path
        self.precision = precision
        self.engine = engine
        self.manifest = manifest
        self._unverified = set() if verified else set(manifest.files)

    @classmethod
    def open(cls, path: Path, *, verify: bool = True) -> Artifact:
        """Read the version in the folder `path`. With `verify`, compare its files with the manifest.

        Raises ArtifactFormatError if the manifest is missing, broken or has a newer format, ArtifactCorruptError for
        the first file that is missing or differs.
        """
        file = path / MANIFEST_FILE
        try:
            manifest = read_manifest(file, file.read_bytes())
        except FileNotFoundError:
            reason = "the file does not exist, so this folder is not a version of a model"
            raise ArtifactFormatError(file, reason) from None
        except OSError as exc:
            raise ArtifactFormatError(file, exc.strerror or str(exc)) from exc
        artifact = cls(path, manifest, verified=False)
        if verify:
            artifact.verify()
        return artifact

    @property
    def verified(self) -> bool:
        """Whether every file was compared with the manifest, by `verify` or `read`."""
        return not self._unverified

    def verify(self) -> None:
        """Compare the files not verified yet with the manifest. Raises ArtifactCorruptError for the first bad one."""
        for name in self.manifest.files:
            if name in self._unverified:
                self._check(name, sha256_of)

    @contextmanager
    def on_disk(self) -> Iterator[Path]:
        """Yield the graph's path, and verify the weights while the caller loads both.

        Raises as `verify`, also instead of the caller's error, and ArtifactFormatError if a file changed meanwhile.
        """
        graph, weights = graph_files(self.precision)
        stamps = self.stamps()
        self._check(graph, sha256_of)
        with ThreadPoolExecutor(1) as pool:
            check = pool.submit(self._check, weights, sha256_of)
            try:
                yield self.model_path
            finally:
                check.result()
        if self.stamps() != stamps:
            raise ArtifactFormatError(self.path, "its files changed while they were loaded. Try again")

    def stamps(self) -> dict[str, tuple[int, int]]:
        """Return the size and modification time (ns) of each file; (-1, 0) for a missing file."""
        stamps = dict.fromkeys(self.manifest.files, (-1, 0))
        for name in stamps:
            with suppress(OSError):
                status = (self.path / name).stat()
                stamps[name] = status.st_size, status.st_mtime_ns
        return stamps

    def differing(self) -> list[str]:
        """Return the names of all files that are missing or differ from the manifest. Raises ArtifactFormatError."""
        names = []
        for name in self.manifest.files:
            try:
                self._check(name, sha256_of)
            except ArtifactCorruptError:
                names.append(name)
        return names

    def read(self, name: str) -> bytes:
        """Return the bytes of a file after comparing them with the manifest. Raises the same errors as `verify`."""
        data = b""

        def read_and_hash(path: Path) -> str:
            nonlocal data
            data = path.read_bytes()
            return hashlib.sha256(data).hexdigest()

        self._check(name, read_and_hash)
        return data

    def _check(self, name: str, sha256: Callable[[Path], str]) -> None:
        path, entry = self.path / name, self.manifest.files[name]
        try:
            found = sha256(path)
        except FileNotFoundError:
            raise ArtifactCorruptError(path, entry.sha256, "missing") from None
        except OSError as exc:
            raise ArtifactFormatError(path, exc.strerror or str(exc)) from exc
        if found != entry.sha256:
            raise ArtifactCorruptError(path, entry.sha256, found)
        self._unverified.discard(name)

    def at(self, precision: str, engine: str | None = None) -> Artifact:
        """Return the same version in another precision, and for `engine` if it is given.

        Raises PrecisionNotFoundError.
        """
        if precision not in self.precisions:
            raise PrecisionNotFoundError(self.id, precision, self.precisions)
        other = copy(self)
        other.precision = precision
        other.engine = engine or self.engine
        return other

    def variants(self) -> Iterator[Artifact]:
        """Yield the version once for each of its fingerprints."""
        for precision in self.precisions:
            variant = self.at(precision)
            for engine in _TITLES if variant.depends_on_engine else (self.engine,):
                yield variant.at(precision, engine)

    @property
    def precisions(self) -> tuple[str, ...]:
        """The precisions that the version has files in. fp32 is always one of them."""
        return (FULL, *self.manifest.precisions)

    @property
    def name(self) -> str:
        """The name of the model, for example "solar"."""
        return self.manifest.name

    @property
    def version(self) -> int:
        """The version number, from 1."""
        return self.manifest.version

    @property
    def id(self) -> str:
        """Name and version, for example "solar:1"."""
        return f"{self.name}:{self.version}"

    @property
    def embedder(self) -> str:
        """The name of the model that an index shows for its vectors: "solar:1" or "solar:1 (int8, OpenVINO)"."""
        if self.precision == FULL:
            return self.id
        engine = f", {_TITLES[self.engine]}" if self._has_own_fingerprint else ""
        return f"{self.id} ({self.precision}{engine})"

    @property
    def fingerprint(self) -> str:
        """The fingerprint of the vectors in this precision. fc7 vectors are comparable if these are equal."""
        files = fingerprint_of(self.manifest.files, self.precision, self.manifest.base_graphs.get(self.precision))
        if not self._has_own_fingerprint:
            return files
        return hashlib.sha256(bytes.fromhex(files) + self.engine.encode()).hexdigest()

    @property
    def depends_on_engine(self) -> bool:
        """Whether the engines compute vectors that are not comparable.

        In int8, a tiny difference before rounding leads to another level.
        """
        return self.precision == INT8

    @property
    def _has_own_fingerprint(self) -> bool:
        return self.depends_on_engine and self.engine != ONNXRUNTIME

    @cached_property
    def labels(self) -> tuple[str, ...]:
        """The class names, in the order of the columns of `probabilities`."""
        return tuple(entry.label for entry in self.manifest.classes)

    @property
    def model_path(self) -> Path:
        """The ONNX graph."""
        return self.path / graph_files(self.precision)[0]

    @property
    def weights_path(self) -> Path:
        """The graph's external data."""
        return self.path / graph_files(self.precision)[1]

    def __repr__(self) -> str:
        return f"Artifact({self.embedder!r}, {str(self.path)!r})"
