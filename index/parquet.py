"""Write images with their metadata and vectors to a Parquet file.

Guarantees: the file is written completely or not at all; memory use does not grow with the number of images.
Out of scope: pictures; reading Parquet.

Columns: key, sha256, size, width, height, metadata (JSON), added, updated (UTC) and vector (4,096 float32, null for an
image without a vector of the index's model). The file's own metadata names the model and its fingerprint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import TargetExistsError, translate_os_error
from index.records import DIMENSIONS, VectorModel
from model_store.durable import atomic_file
from model_store.table_file import import_pyarrow

# An image, in the order of the columns. Times are in microseconds since 1970; the vector is float16 bytes or None.
ExportRow = tuple[Any, ...]


def write_parquet(
    target: Path, model: VectorModel, groups: Iterable[list[ExportRow]], advance: Callable[[int], None] = lambda _: None
) -> int:
    """Write each list of rows as a row group to the new file `target`; return the number of rows.

    advance: called with the number of rows written so far. Raises MissingExtraError, TargetExistsError, IndexFullError,
    IndexReadOnlyError and the errors of `groups`; then no file is left.
    """
    pyarrow = import_pyarrow()
    if target.exists():
        raise TargetExistsError(target, "Choose the name of a new file")
    schema = _schema(pyarrow, {"fc7.model": model.model, "fc7.fingerprint": model.fingerprint})
    done = 0
    try:
        with atomic_file(target) as file, pyarrow.parquet.ParquetWriter(file, schema, compression="zstd") as writer:
            for group in groups:
                writer.write_table(_table(pyarrow, schema, group))
                done += len(group)
                advance(done)
    except OSError as error:
        raise translate_os_error(error, target.parent) from error
    return done


def _schema(pyarrow: Any, metadata: dict[str, str]) -> Any:
    moment = pyarrow.timestamp("us", tz="UTC")
    columns = [("key", pyarrow.string()), ("sha256", pyarrow.string())]
    columns += [(name, pyarrow.int64()) for name in ("size", "width", "height")]
    columns += [("metadata", pyarrow.string()), ("added", moment), ("updated", moment)]
    columns.append(("vector", pyarrow.list_(pyarrow.float32(), DIMENSIONS)))
    return pyarrow.schema(columns, metadata=metadata)


def _table(pyarrow: Any, schema: Any, rows: list[ExportRow]) -> Any:
    *columns, vectors = zip(*rows, strict=True)
    arrays = [pyarrow.array(column, schema.field(n).type) for n, column in enumerate(columns)]
    empty = bytes(2 * DIMENSIONS)
    values = np.frombuffer(b"".join(vector or empty for vector in vectors), np.float16).astype(np.float32)
    missing = np.array([vector is None for vector in vectors])
    arrays.append(
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), DIMENSIONS, mask=pyarrow.array(missing))
    )
    return pyarrow.Table.from_arrays(arrays, schema=schema)
