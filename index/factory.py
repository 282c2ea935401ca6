"""Open the configured index: in a folder of this machine, or on Milvus.

Guarantees: callers need not know which of the two it is.
Out of scope: reading settings (service/factory.py).
"""

from __future__ import annotations

from pathlib import Path

from index.catalog.catalog import Catalog
from index.catalog.database import CATALOG_FILE
from index.catalog.lock import check_exists
from index.interface import ImageIndex
from index.local.code_builder import saved_mode
from index.local.index import LocalImageIndex
from index.local.vector_files import bytes_on_disk
from index.milvus.index import MilvusImageIndex
from index.milvus.spaces import read_stats_on_milvus
from index.records import IndexOptions, IndexStats, MilvusAddress


def open_index(home: Path, milvus: MilvusAddress | None, options: IndexOptions) -> ImageIndex:
    """Open the index at `milvus`, or the local index of the folder `home` for None. Creates it if it does not exist.

    Raises as LocalImageIndex.open and MilvusImageIndex.open do.
    """
    if milvus is None:
        return LocalImageIndex.open(home, options)
    return MilvusImageIndex.open(milvus, options)


def read_stats(home: Path, milvus: MilvusAddress | None = None) -> IndexStats:
    """Return the counts of the index without opening it for search; another process may have it open.

    The arguments are as in `open_index`. Raises IndexUnavailableError if there is none, IndexCorruptError,
    IndexFormatError, and for Milvus IndexUriError, MissingExtraError, IndexUnreachableError.
    """
    if milvus is not None:
        return read_stats_on_milvus(milvus)
    folder = home / "index"
    check_exists(folder)
    with Catalog(folder / CATALOG_FILE, read_only=True) as catalog:
        active = next((space for space in catalog.spaces() if space.active), None)
        return IndexStats(
            images=catalog.images(),
            vectors=active.vectors if active else 0,
            bytes_on_disk=bytes_on_disk(folder),
            bytes_in_memory=0,
            mode=saved_mode(folder, active.fingerprint) if active else "exact",
            model=active.model if active else "",
            fingerprint=active.fingerprint if active else "",
            outdated=catalog.outdated(),
        )
