"""What one worker of a cluster does: files by name in; hashes, sizes, pictures and vectors out.

Promises: nothing is written, so a worker that dies at any moment leaves nothing behind, and its files can be given to
another; every file that came in is in the answer once: embedded, unchanged, or skipped with its reason. What stops the
worker as a whole (no such device, another fc7, a source that is not there) is in the answers too, not an exception:
whoever asked must say it.
Does not: know Ray. The answers are an Arrow table, because that is what travels cheaply.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import socket
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from index.bulk.pipeline import batches, embed
from index.bulk.sources import open_source
from index.errors import ClusterError
from index.records import encode_vectors
from model_store.errors import Fc7Error, ImageError
from model_store.image import encode_jpeg, inspect_and_prepare
from model_store.prefetch import prefetch
from model_store.remote_artifact import ShippedArtifact, ShippedVersion
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner

if TYPE_CHECKING:
    import pyarrow

EMBEDDED, UNCHANGED, SKIPPED, FAILED = "embedded", "unchanged", "skipped", "failed"
_COLUMNS = ("name", "status", "reason", "sha256", "size", "width", "height", "picture", "vector")


@dataclass(frozen=True, slots=True)
class WorkerPlan:
    """What every worker of one build is told.

    place: the source, as `open_source` takes it. code: what `code_identity` must be there. batch_size: images in one
    run. threads: that read and decode, and of one run on a CPU.
    """

    place: str
    code: str
    options: RunnerOptions
    batch_size: int
    threads: int
    max_pixels: int
    keep_pictures: bool


@dataclass(slots=True)
class _Row:
    """A file's row of the answer; `vector` is its float16 bytes, `pixels` what it is made of."""

    name: str
    status: str
    reason: str = ""
    sha256: str = ""
    size: int = 0
    width: int = 0
    height: int = 0
    picture: bytes | None = None
    vector: bytes | None = None
    pixels: NDArray[np.uint8] | None = None


def code_identity(root: Path | None = None) -> str:
    """Return the identity of the code that makes pictures and vectors: the first 16 hex digits of its SHA-256.

    Covers every Python file of `model_store` and `index`, sub-packages included, except `model_store/training`.
    root: the folder that holds both packages; by default the one that this process runs from.
    """
    root = root or Path(__file__).resolve().parents[3]
    digest = hashlib.sha256()
    for package in ("model_store", "index"):
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            if not name.startswith("model_store/training/"):
                digest.update(name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


def another_code(found: str, wanted: str) -> str:
    """Return what to say of a worker whose `code_identity` is not that of the command."""
    return f"has another fc7 (code {found}, and this command's is {wanted}): install the same version everywhere"


class Embedder:
    """A runner, and what feeds it. Making one never fails: `failure` says what is wrong, and so does every answer."""

    def __init__(self, plan: WorkerPlan, version: ShippedVersion) -> None:
        self._plan = plan
        self.failure = ""
        self.worker = f"{socket.gethostname()}/{os.getpid()}"
        try:
            if (found := code_identity()) != plan.code:
                raise ClusterError(self.worker, another_code(found, plan.code))
            self._source = open_source(plan.place)
            self._source.check()
            options = dataclasses.replace(plan.options, precision=None, intra_op_threads=plan.threads)
            self._runner = Runner(ShippedArtifact(version), options)
        except Exception as error:  # the seam: whatever it is, a worker that only dies is started again and again
            self.failure = said(error)
        else:
            self.worker += f" {self._runner.device}"

    def embed(self, names: Sequence[str], known: Sequence[str]) -> pyarrow.Table:
        """Return a row for each file: what became of it, and if it was embedded all that the index wants of it.

        names: paths below the source. known: the SHA-256 that the index has under each, or an empty text. The columns
        are those of an image to add, `worker`, and `seconds`, whose sum is what the call took.
        """
        began = time.perf_counter()
        rows: list[_Row] = []
        size = self._plan.batch_size
        if self.failure:
            return _table([_Row(name, FAILED, self.failure) for name in names], self.worker, 0.0)
        try:
            with prefetch(self._read, zip(names, known, strict=True), self._plan.threads, 2 * size) as results:
                for batch in batches(results, size):
                    done = [result.result() for _, result in batch]
                    self._run([row for row in done if row.pixels is not None])
                    rows += done
        except Exception as error:  # the same seam: the files are not to blame
            rows = [_Row(name, FAILED, said(error)) for name in names]
        return _table(rows, self.worker, time.perf_counter() - began)

    def _read(self, file: tuple[str, str]) -> _Row:
        name, known = file
        try:
            data = self._source.read(name)
            sha256 = hashlib.sha256(data).hexdigest()
            if sha256 == known:
                return _Row(name, UNCHANGED, sha256=sha256)
            image = inspect_and_prepare(data, max_pixels=self._plan.max_pixels)
        except (OSError, ImageError) as error:
            return _Row(name, SKIPPED, str(error) or type(error).__name__)
        picture = encode_jpeg(image.pixels) if self._plan.keep_pictures else None
        return _Row(
            name, EMBEDDED, "", sha256, len(data), image.width, image.height, picture=picture, pixels=image.pixels
        )

    def _run(self, rows: list[_Row]) -> None:
        pixels = [row.pixels for row in rows if row.pixels is not None]
        if pixels:
            for row, vector in zip(rows, encode_vectors(embed(self._runner, pixels)), strict=True):
                row.vector, row.pixels = vector.tobytes(), None


def _table(rows: list[_Row], worker: str, seconds: float) -> pyarrow.Table:
    import pyarrow  # noqa: PLC0415 - an extra: only who works for a cluster needs it

    types = {"size": pyarrow.int64(), "width": pyarrow.int32(), "height": pyarrow.int32()}
    types |= dict.fromkeys(("picture", "vector"), pyarrow.binary())
    columns = {
        column: pyarrow.array([getattr(row, column) for row in rows], types.get(column, pyarrow.string()))
        for column in _COLUMNS
    }
    columns["worker"] = pyarrow.array([worker] * len(rows), pyarrow.string())
    columns["seconds"] = pyarrow.array([seconds / len(rows)] * len(rows), pyarrow.float64())
    return pyarrow.table(columns)


def said(error: Exception) -> str:
    """Return the error in one text, whosever it is."""
    return str(error) if isinstance(error, Fc7Error) else f"{type(error).__name__}: {error}"
