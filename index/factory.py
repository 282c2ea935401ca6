"""Open the index where the settings say that it is: in the folder of this home, or on Milvus.

Promises: who opens an index here need not know which of the two it is.
Does not: read settings (service/factory.py hands them over).
"""

from __future__ import annotations

from pathlib import Path

from index.catalog.catalog import Catalog
from index.catalog.database import CATALOG_FILE
from index.catalog.lock import check_exists
from index.interface import ImageIndex
from index.local.code_builder import saved_mode
from index.local.index import LocalImageIndex, bytes_on_disk
from index.milvus.index import MilvusImageIndex
from index.milvus.spaces import read_stats_on_milvus
from index.records import IndexStats


def open_index(
    home: Path,
    uri: str | None,
    token: str | None,
    *,
    fingerprint: str,
    model: str,
    keep_pictures: bool = True,
    name: str = "fc7",
    timeout_s: float = 5.0,
    switch: bool = False,
    follow: bool = False,
    keep_spaces: bool = True,
    read_only: bool = False,
    fast_from: int | None = None,
) -> ImageIndex:
    """Open the index for the model with this `fingerprint`; made when missing.

    home: folder of the local index, used where `uri` is None. uri: of Milvus, http://host:19530, or a file ending in
    .db for Milvus Lite. token: for Milvus, "user:password" or an API key. name: what the names of its collections begin
    with. timeout_s: of one call to it. The others, and what is raised: as of LocalImageIndex.open and
    MilvusImageIndex.open; `keep_spaces` and `fast_from` are nothing to Milvus.
    """
    if uri is None:
        return LocalImageIndex.open(
            home,
            fingerprint=fingerprint,
            model=model,
            keep_pictures=keep_pictures,
            switch=switch,
            follow=follow,
            keep_spaces=keep_spaces,
            read_only=read_only,
            fast_from=fast_from,
        )
    return MilvusImageIndex.open(
        uri,
        token,
        fingerprint=fingerprint,
        model=model,
        name=name,
        timeout_s=timeout_s,
        keep_pictures=keep_pictures,
        switch=switch,
        follow=follow,
        read_only=read_only,
    )


def read_stats(
    home: Path, uri: str | None = None, token: str | None = None, *, name: str = "fc7", timeout_s: float = 5.0
) -> IndexStats:
    """Return the counts of the index without opening it for search; another process may have it open.

    The arguments are as in `open_index`. Raises IndexUnavailableError when there is none, IndexCorruptError,
    IndexFormatError, and for Milvus IndexUriError, MissingExtraError, IndexUnreachableError.
    """
    if uri is not None:
        return read_stats_on_milvus(uri, token, name=name, timeout_s=timeout_s)
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
        )
