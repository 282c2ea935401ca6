"""The work of one Ray worker: it gets the names of files, and returns hashes, sizes, pictures and vectors.

Guarantees: a worker writes nothing, so its files can be given to another worker when it dies; every file is in the
result exactly once: embedded, unchanged, or skipped with a reason. An error of the whole worker (no such device, other
code, a missing source) is reported in the rows of the result, not raised, so that Ray does not start it again.
Out of scope: Ray itself. The result is an Arrow table, which Ray transfers without copying.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from index.bulk.add import PreparedBatch, PreparedFile, prepare_file, skipped_file
from index.bulk.pipeline import batches_in_threads, embed
from index.bulk.sources import open_source
from index.errors import ClusterError
from index.records import encode_vectors
from model_store.decoder.decoder import Decoder
from model_store.decoder.limits import DecodeLimits
from model_store.errors import Fc7Error
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from model_store.transfer.remote_artifact import ShippedArtifact, ShippedVersion

if TYPE_CHECKING:
    import pyarrow

EMBEDDED, UNCHANGED, SKIPPED, FAILED = "embedded", "unchanged", "skipped", "failed"
IMAGE_COLUMNS = ("sha256", "size", "width", "height", "picture")  # fields of NewImage

_File = tuple[str, str]  # name, and the SHA-256 that the index has for it, or ""


def code_identity(root: Path | None = None) -> str:
    """Return the identity of the code that makes pictures and vectors: the first 16 hex digits of its SHA-256.

    Covers every Python file of `model_store` and `index`, sub-packages included, except `model_store/training`.
    root: the folder with both packages; by default the one of the running code.
    """
    root = root or Path(__file__).resolve().parents[3]
    digest = hashlib.sha256()
    for package in ("model_store", "index"):
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith("model_store/training/"):
                digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def code_mismatch(where: str, found: str, expected: str) -> str:
    """Return the error message for a node or worker whose `code_identity` differs from the command's."""
    return f"{where} has another version of fc7 (code {found}, this command: {expected}). Install the same version."


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """Parameters shared by all workers of a build.

    location: of the source, for `open_source`. batch_size: images in one run of the model. threads: for reading and
    decoding, and for a run on a CPU. code: the `code_identity` that workers must have.
    """

    location: str
    options: RunnerOptions
    batch_size: int
    threads: int
    limits: DecodeLimits
    keep_pictures: bool
    code: str = field(default_factory=code_identity)


class Embedder:
    """A runner and its input. The constructor never raises: an error is kept in `failure` and reported in every row."""

    def __init__(self, plan: WorkerPlan, version: ShippedVersion) -> None:
        self._plan = plan
        self.failure = ""
        self.worker = f"{socket.gethostname()}/{os.getpid()}"
        try:
            if (found := code_identity()) != plan.code:
                raise ClusterError(self.worker, code_mismatch("It", found, plan.code))
            self._source = open_source(plan.location)
            self._source.check()
            options = dataclasses.replace(plan.options, precision=None, intra_op_threads=plan.threads)
            self._decoder = Decoder(plan.limits, workers=plan.threads)
            artifact = ShippedArtifact(version)
            self._runner = Runner(artifact, options)
            if self._runner.artifact.fingerprint != artifact.fingerprint:
                raise ClusterError(self.worker, _engine_mismatch(self._runner.artifact.embedder, artifact.embedder))
        except Exception as error:  # any error: Ray would start a worker that raises again and again
            self.failure = _describe(error)
        else:
            self.worker += f" {self._runner.device}"

    def embed(self, names: Sequence[str], known: Sequence[str]) -> pyarrow.Table:
        """Return a row for each file, with its status and, if it was embedded, the columns of the image to add.

        names: paths below the source. known: the SHA-256 that the index has for each file, or an empty string. Each row
        also has the `worker`, and the `seconds` of the call divided by the number of files.
        """
        started = time.perf_counter()
        rows: dict[str, dict[str, Any]] = {}
        threads = self._plan.threads
        size = min(self._plan.batch_size, -(-len(names) // threads))  # few files: use every thread
        files = zip(names, known, strict=True)
        failure = self.failure
        if not failure:
            try:
                with batches_in_threads(self._embed_batch, files, size=size, workers=threads) as results:
                    for some in results:
                        rows |= some
            except Exception as error:  # any error of the worker, not of a file
                failure = _describe(error)
        if failure:
            rows = {name: {"status": FAILED, "reason": failure} for name in names}
        return _table(names, rows, self.worker, time.perf_counter() - started)

    def _read(self, file: _File) -> PreparedFile | None:
        name, known = file
        plan = self._plan
        data = self._source.read(name)
        return prepare_file(name, data, known, decoder=self._decoder, keep_picture=plan.keep_pictures)

    def _embed_batch(self, listed: Sequence[_File]) -> dict[str, dict[str, Any]]:
        """Return the row of each file, by name."""
        batch = PreparedBatch.of((file, partial(self._read, file)) for file in listed)
        rows: dict[str, dict[str, Any]] = {name: {"status": UNCHANGED} for name, _ in batch.unchanged}
        skipped = {name: skipped_file(name, error) for (name, _), error in batch.skipped}
        rows |= {
            name: {"status": SKIPPED, "reason": item.reason, "kind": item.kind.value} for name, item in skipped.items()
        }
        files = [file for _, file in batch.files]
        vectors = encode_vectors(embed(self._runner, [file.image.pixels for file in files])) if files else ()
        for file, vector in zip(files, vectors, strict=True):
            image = file.new_image(vector)
            columns = {name: getattr(image, name) for name in IMAGE_COLUMNS}
            rows[file.key] = {"status": EMBEDDED, "vector": vector.tobytes(), **columns}
        return rows


def _table(names: Sequence[str], rows: dict[str, dict[str, Any]], worker: str, seconds: float) -> pyarrow.Table:
    """Return the rows as a table, in the order of `names`; vector: the bytes of float16 [4096]."""
    import pyarrow  # noqa: PLC0415 - an extra, needed only by workers

    text, number, binary = pyarrow.string(), pyarrow.int64(), pyarrow.binary()
    types = dict.fromkeys(("name", "status", "reason", "kind", "sha256", "worker"), text)
    types |= dict.fromkeys(("size", "width", "height"), number) | dict.fromkeys(("picture", "vector"), binary)
    common = {"worker": worker, "seconds": seconds / len(names)}
    return pyarrow.Table.from_pylist(
        [{"name": name, **rows[name], **common} for name in names],
        pyarrow.schema([*types.items(), ("seconds", pyarrow.float64())]),
    )


def _engine_mismatch(found: str, expected: str) -> str:
    return (
        f"It computes vectors of {found}, but the index needs those of {expected}. Set FC7_ENGINE to an engine that is "
        "installed on all nodes."
    )


def _describe(error: Exception) -> str:
    """Return the message of an error; the type is included unless it is one of fc7's own errors."""
    return str(error) if isinstance(error, Fc7Error) else f"{type(error).__name__}: {error}"
