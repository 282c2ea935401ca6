"""Write predictions to a CSV, JSON Lines or Parquet file, part by part, so that an interrupted run can resume.

    .answers.csv.parts/      beside answers.csv while it is being made
        run.json             source, model and options; another run does not continue with these parts
        000000.names         the images of the part: a JSON object from name to error, or null
        000000.csv           their rows

Guarantees: a part is complete or absent after a kill at any moment, and images in complete parts are not classified
again. The file appears under its name when it is complete, and an existing file is never replaced.
Out of scope: images that were changed, added or removed between two runs of one command.
"""

from __future__ import annotations

import csv
import io
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import numpy as np

from index.bulk.predict import PredictedImage
from index.errors import ResultTooLargeError, TargetExistsError, translate_os_error
from model_store.artifact import Artifact
from model_store.durable import atomic_file, locked, write_atomic
from model_store.errors import Fc7Error
from model_store.runtime.runner import top_k
from model_store.table_file import import_pyarrow

FORMATS: Final = (".csv", ".jsonl", ".parquet")
_PART_ROWS: Final = 1024
_PART_SECONDS: Final = 30.0  # a slower run writes smaller parts, so that a kill costs little
_DIMENSIONS: Final = 4096
_DIGITS: Final = 6  # of a number in text


@dataclass(frozen=True, slots=True)
class Options:
    """What a row contains. top: number of classes. embeddings: whether fc7 is included. views: 1 or 10.

    threshold: share of the validation images to accept, from 0 to 1; others are unknown.
    """

    top: int
    embeddings: bool
    views: int
    threshold: float


class PredictionFile:
    """The file to write. Use as a context manager: if the block ends with an error, the rows so far are kept."""

    def __init__(
        self, target: Path, source: str, artifact: Artifact, options: Options, *, max_bytes: int | None = None
    ) -> None:
        """max_bytes: the largest size of the file; None: no limit."""
        self._target, self._artifact, self._options = target, artifact, options
        self._parts = target.with_name(f".{target.name}.parts")
        self._run = {"source": source, "model": artifact.id, "fingerprint": artifact.fingerprint, **asdict(options)}
        self._rows: list[PredictedImage] = []
        self._number = 0
        self._written = time.monotonic()  # when the last part was written
        self._max_bytes, self._bytes = max_bytes, 0
        self._stack = ExitStack()
        self.done: dict[str, str | None] = {}  # images in complete parts, and why they have no prediction

    def __enter__(self) -> Self:
        """Open the parts of an interrupted run, or start. Raises TargetExistsError, MissingExtraError, Fc7Error."""
        if self._target.suffix == ".parquet":
            import_pyarrow()
        if self._target.exists():
            raise TargetExistsError(self._target, "Choose the name of a new file, or delete this one")
        try:
            self._parts.mkdir(parents=True, exist_ok=True)
            if not self._stack.enter_context(locked(self._parts / ".lock", wait=False)):
                raise Fc7Error(f"{self._target} is being written by another process.")
            self._open_run()
        except OSError as error:
            raise translate_os_error(error, self._target.parent) from error
        return self

    def _open_run(self) -> None:
        file = self._parts / "run.json"
        if file.exists() and (before := json.loads(file.read_bytes())) != self._run:
            changes = [
                f"{name} {before.get(name)} instead of {value}"
                for name, value in self._run.items()
                if before.get(name) != value and name != "fingerprint"
            ] or [f"{self._artifact.id} with other weights"]
            raise Fc7Error(
                f"{self._parts} has results of an interrupted run with another source, model or options: "
                f"{', '.join(changes)}. To start again, delete it; to finish it, use the same command as before."
            )
        write_atomic(file, json.dumps(self._run).encode())
        for part in self._part_files():
            names = json.loads(part.with_suffix(".names").read_bytes())
            self.done.update(names if isinstance(names, dict) else dict.fromkeys(names))  # earlier, a list
            self._number = int(part.stem) + 1
            self._bytes += part.stat().st_size

    def _part_files(self) -> list[Path]:
        return sorted(self._parts.glob(f"[0-9]*{self._target.suffix}"))

    def add(self, rows: Sequence[PredictedImage]) -> Sequence[PredictedImage]:
        """Add rows and return them. They are on disk when a part is full or 30 seconds old, or after the block.

        Raises IndexFullError, ResultTooLargeError.
        """
        self._rows += rows
        if len(self._rows) >= _PART_ROWS or time.monotonic() - self._written > _PART_SECONDS:
            self._write_part()
        return rows

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._stack:
            self._write_part()
            if kind is None:
                self._join()
            elif not self._part_files():
                shutil.rmtree(self._parts)

    def _write_part(self) -> None:
        if not self._rows:
            return
        part = self._parts / f"{self._number:06}{self._target.suffix}"
        names = json.dumps({row.name: row.error for row in self._rows}).encode()
        try:
            write_atomic(part.with_suffix(".names"), names)
            with atomic_file(part) as file:
                self._write_rows(file)
        except OSError as error:
            raise translate_os_error(error, self._parts) from error
        self._number += 1
        self._rows, self._written = [], time.monotonic()
        self._bytes += part.stat().st_size
        self._check_size()

    def _check_size(self) -> None:
        if self._max_bytes is not None and self._bytes > self._max_bytes:
            raise ResultTooLargeError(self._max_bytes)

    def _write_rows(self, file: Any) -> None:
        documents = [_document(row, self._artifact.labels, self._options) for row in self._rows]
        match self._target.suffix:
            case ".csv":
                file.write(_csv(_columns(document, self._options.top) for document in documents))
            case ".jsonl":
                file.writelines(json.dumps(document, ensure_ascii=False).encode() + b"\n" for document in documents)
            case _:
                parquet = import_pyarrow().parquet
                parquet.write_table(self._table(documents), file, compression="zstd")

    def _table(self, documents: list[dict[str, Any]]) -> Any:
        return _table(documents, self._options, f"{self._artifact.id} {self._artifact.fingerprint}")

    def _join(self) -> None:
        """Write all parts into one file, and remove them."""
        self._check_size()
        parts = self._part_files()
        try:
            with atomic_file(self._target, replace=False) as file:
                if self._target.suffix == ".parquet":
                    self._join_parquet(parts, file)
                else:
                    if self._target.suffix == ".csv":
                        file.write(_csv([_heading(self._options.top)]))
                    for part in parts:
                        with part.open("rb") as content:
                            shutil.copyfileobj(content, file)
        except OSError as error:
            raise translate_os_error(error, self._target.parent) from error
        shutil.rmtree(self._parts)

    def _join_parquet(self, parts: Sequence[Path], file: Any) -> None:
        parquet = import_pyarrow().parquet
        with parquet.ParquetWriter(file, self._table([]).schema, compression="zstd") as writer:
            for part in parts:
                writer.write_table(parquet.read_table(part))


def _document(row: PredictedImage, labels: Sequence[str], options: Options) -> dict[str, Any]:
    """Return a row as JSON types."""
    predictions = []
    if row.probabilities is not None:
        indices, values = top_k(row.probabilities[np.newaxis], min(options.top, len(labels)))
        predictions = [
            {"label": labels[index], "probability": round(value, _DIGITS)}
            for index, value in zip(indices[0].tolist(), values[0].tolist(), strict=True)
        ]
    novelty = None if row.novelty is None else row.novelty.to_dict(options.threshold)
    if novelty is not None:
        novelty["distance"] = round(novelty["distance"], _DIGITS)
    document: dict[str, Any] = {"path": row.name, "predictions": predictions, "novelty": novelty, "error": row.error}
    if options.embeddings:
        document["embedding"] = None if row.fc7 is None else np.round(row.fc7.astype(np.float64), _DIGITS).tolist()
    return document


def _heading(top: int) -> list[str]:
    classes = (f"{name}_{rank}" for rank in range(1, top + 1) for name in ("label", "probability"))
    return ["path", *classes, "distance", "percentile", "unknown", "error"]


def _columns(document: Mapping[str, Any], top: int) -> list[Any]:
    """Return a row of the CSV file. Classes that do not exist are empty."""
    cells = [cell for entry in document["predictions"] for cell in (entry["label"], entry["probability"])]
    novelty = document["novelty"]
    measured = [""] * 3
    if novelty is not None:
        measured = [novelty["distance"], novelty["percentile"], str(novelty["unknown"]).lower()]
    return [document["path"], *cells, *[""] * (2 * top - len(cells)), *measured, document["error"] or ""]


def _csv(rows: Any) -> bytes:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue().encode()


def _table(documents: list[dict[str, Any]], options: Options, model: str) -> Any:
    pyarrow = import_pyarrow()
    prediction = pyarrow.struct([("label", pyarrow.string()), ("probability", pyarrow.float32())])
    novelty = pyarrow.struct(
        [("distance", pyarrow.float32()), ("percentile", pyarrow.float32()), ("unknown", pyarrow.bool_())]
    )
    columns = [
        ("path", pyarrow.string()),
        ("predictions", pyarrow.list_(prediction)),
        ("novelty", novelty),
        ("error", pyarrow.string()),
    ]
    if options.embeddings:
        columns.append(("embedding", pyarrow.list_(pyarrow.float32(), _DIMENSIONS)))
    return pyarrow.Table.from_pylist(documents, schema=pyarrow.schema(columns, metadata={"fc7.model": model}))
