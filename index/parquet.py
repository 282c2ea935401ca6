"""The index as a Parquet file: keys, metadata and vectors, for whatever else reads them.

Promises: the file is one moment of the index of a home (of one on Milvus, index/milvus/export.py, each line is), whole
under its name or not there; memory stays small, whatever the index has; a running server goes on writing.
Does not: write pictures, read Parquet.

Columns: key, sha256, size, width, height, metadata (JSON), added, updated (UTC), vector (4,096 float32, null where the
image has none of the index's model). The model and its fingerprint are in the file's own metadata.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from index.errors import TargetExistsError, translate_os_error
from index.records import DIMENSIONS, VectorModel
from model_store.durable import sync
from model_store.errors import MissingExtraError

# An image, in the order of the columns; times in microseconds since 1970, the vector as float16 bytes or None.
Line = tuple[str, str, int, int, int, str, int, int, bytes | None]


def write_parquet(
    target: Path, model: VectorModel, groups: Iterable[list[Line]], *, advance: Callable[[int], None] | None = None
) -> int:
    """Write lines, a row group for each list of them, to the new file `target`, and return how many.

    advance: called with the lines written. Raises MissingExtraError, TargetExistsError, IndexFullError,
    IndexReadOnlyError, and what `groups` raises; then there is no file.
    """
    try:
        import pyarrow  # noqa: PLC0415
        import pyarrow.parquet  # noqa: PLC0415
    except ImportError:
        raise MissingExtraError("pyarrow", "export") from None
    if target.exists():
        raise TargetExistsError(target, "name a new file")
    staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    schema = _schema(pyarrow, {"fc7.model": model.model, "fc7.fingerprint": model.fingerprint})
    done = 0
    try:
        with pyarrow.parquet.ParquetWriter(staged, schema, compression="zstd") as writer:
            for group in groups:
                writer.write_table(_table(pyarrow, schema, group))
                done += len(group)
                if advance is not None:
                    advance(done)
        sync(staged)
        staged.rename(target)
        sync(target.parent)
    except OSError as error:
        raise translate_os_error(error, target.parent) from error
    finally:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
    return done


def _schema(pyarrow: Any, metadata: dict[str, str]) -> Any:
    moment = pyarrow.timestamp("us", tz="UTC")
    columns = [("key", pyarrow.string()), ("sha256", pyarrow.string())]
    columns += [(name, pyarrow.int64()) for name in ("size", "width", "height")]
    columns += [("metadata", pyarrow.string()), ("added", moment), ("updated", moment)]
    columns.append(("vector", pyarrow.list_(pyarrow.float32(), DIMENSIONS)))
    return pyarrow.schema(columns, metadata=metadata)


def _table(pyarrow: Any, schema: Any, rows: list[Line]) -> Any:
    *columns, vectors = zip(*rows, strict=True)
    arrays = [pyarrow.array(column, schema.field(n).type) for n, column in enumerate(columns)]
    empty = bytes(2 * DIMENSIONS)
    values = np.frombuffer(b"".join(vector or empty for vector in vectors), np.float16).astype(np.float32)
    missing = np.array([vector is None for vector in vectors])
    arrays.append(
        pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(values), DIMENSIONS, mask=pyarrow.array(missing))
    )
    return pyarrow.Table.from_arrays(arrays, schema=schema)
