"""One connection to Milvus: its address checked, each call bounded in time, its errors made ours.

Promises: pymilvus is imported when a connection is made and not before; every read is of everything that was
acknowledged before it (strong consistency); no error, and no text of this module, has the token in it.
Does not: know what lies in the collections.
"""

from __future__ import annotations

import importlib.util
import logging
import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

from index.errors import IndexUnavailableError, IndexUnreachableError, IndexUriError
from index.milvus.schema import MOST_ROWS, Row, ids_in
from model_store.errors import MissingExtraError

T = TypeVar("T")
_LOAD_S = 600.0  # a cluster takes its time to load a collection that nobody had loaded
_IDS_AT_ONCE = 500
_KIND_S = 10.0
_NOT_LOADED = 101  # Milvus's code


class Milvus:
    """A connection. All methods may be called from any thread, and raise IndexUnreachableError.

    place: the address, to show. trouble: why the last call failed, "" when it did not.
    """

    def __init__(self, uri: str, token: str | None, timeout_s: float) -> None:
        """uri, token, timeout_s: as in `index.factory.open_index`.

        Raises IndexUriError, MissingExtraError, IndexUnreachableError.
        """
        _check_uri(uri)
        try:
            import pymilvus  # noqa: PLC0415 - slow, and only wanted here
        except ImportError:
            raise MissingExtraError("pymilvus", "scale") from None
        # It logs every error with its trace, in a form of its own; ours go where the program's own errors go.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self.place, self.module, self.trouble = uri, pymilvus, ""
        self._token, self._timeout = token, timeout_s
        self._kinds: dict[str, tuple[float, str]] = {}
        self._client: Any = None
        self._client = self._guarded(
            lambda: pymilvus.MilvusClient(uri, token=token or "", timeout=timeout_s, dedicated=True)
        )

    def close(self) -> None:
        """Let the connection go."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # --- collections --------------------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        return list(self._call("list_collections"))

    def has(self, collection: str) -> bool:
        """Tell whether there is a collection of this name."""
        return bool(self._call("has_collection", collection))

    def open(self, collection: str, schema: Callable[[Any], Any]) -> None:
        """Make a collection when it is missing, its vectors compared by exact Euclidean distance; and load it."""
        if not self.has(collection):
            try:
                made = schema(self.module)
                self._call("create_collection", collection, schema=made, consistency_level="Strong")
            except IndexUnreachableError:
                if not self.has(collection):  # else another replica made it in this moment
                    raise
        if not self._call("list_indexes", collection, "vector"):
            index = self.module.MilvusClient.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="L2")
            self._call("create_index", collection, index_params=index, sync=False)
        if str(self._call("get_load_state", collection)["state"]) != "Loaded":
            self._load(collection)

    def index_type(self, collection: str) -> str:
        """Return how Milvus searches the vectors of a collection, as of some seconds ago: FLAT compares all of them."""
        known = self._kinds.get(collection)
        if known is None or time.monotonic() - known[0] > _KIND_S:
            known = self._kinds[collection] = (time.monotonic(), self._index_type(collection))
        return known[1]

    def _index_type(self, collection: str) -> str:
        names = self._call("list_indexes", collection, "vector")
        if not names:
            return "FLAT"
        return str(self._call("describe_index", collection, names[0])["index_type"])

    # --- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, collection: str, ids: Sequence[str], fields: Sequence[str]) -> dict[str, Row]:
        """Return {id: row} of those rows that there are."""
        found: dict[str, Row] = {}
        for start in range(0, len(ids), _IDS_AT_ONCE):
            some = ids[start : start + _IDS_AT_ONCE]
            answer = self._call(
                "query", collection, filter=ids_in(some), output_fields=list(fields), consistency_level="Strong"
            )
            found |= {row["id"]: dict(row) for row in answer}
        return found

    def page(self, collection: str, fields: Sequence[str], *, after: str, limit: int, where: str = "") -> list[Row]:
        """Return up to `limit` rows with an id above `after` for which `where` is true, by id."""
        condition = f'id > "{after}"' + (f" and {where}" if where else "")
        answer = self._call(
            "query",
            collection,
            filter=condition,
            output_fields=list(fields),
            limit=min(limit, MOST_ROWS),
            consistency_level="Strong",
            # What pymilvus's own iterator sends: only so are they the first ones by id, and in its order.
            iterator="True",
            reduce_stop_for_best="True",
        )
        return [dict(row) for row in answer]

    def pages(self, collection: str, fields: Sequence[str], *, size: int, where: str = "") -> Iterator[list[Row]]:
        """Yield all rows for which `where` is true, by id; one that is there throughout is yielded once."""
        after = ""
        while rows := self.page(collection, fields, after=after, limit=size, where=where):
            yield rows
            after = rows[-1]["id"]

    def count(self, collection: str, where: str = "") -> int:
        """Return how many rows there are for which `where` is true."""
        [row] = self._call("query", collection, filter=where, output_fields=["count(*)"], consistency_level="Strong")
        return int(row["count(*)"])

    def write(self, collection: str, rows: Sequence[Row]) -> None:
        """Put rows in the place of those with the same ids, or beside the others."""
        if rows:
            self._call("upsert", collection, list(rows))

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        """Delete rows; those that are not there are none."""
        if ids:
            self._call("delete", collection, filter=ids_in(ids))

    def search(
        self, collection: str, vectors: Sequence[Any], fields: Sequence[str], *, limit: int, where: str, params: Row
    ) -> list[list[Row]]:
        """Return the `limit` nearest rows of each vector, float32 [4096], as Milvus finds them, nearest first."""
        answer = self._call(
            "search",
            collection,
            data=list(vectors),
            anns_field="vector",
            filter=where,
            limit=limit,
            output_fields=list(fields),
            search_params={"metric_type": "L2", "params": params},
            consistency_level="Strong",
        )
        return [[{"id": hit["id"], **hit["entity"]} for hit in hits] for hits in answer]

    # --- calls --------------------------------------------------------------------------------------------------------

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        client = self._client
        if client is None:
            raise IndexUnavailableError(self.place, "it is closed")
        options.setdefault("timeout", self._timeout)

        def work() -> Any:
            return getattr(client, name)(*arguments, **options)

        try:
            return self._guarded(work)
        except IndexUnreachableError as error:
            if getattr(error.__cause__, "code", 0) != _NOT_LOADED:
                raise
        self._load(arguments[0])  # Milvus was started again, or somebody released it
        return self._guarded(work)

    def _load(self, collection: str) -> None:
        client = self._client
        self._guarded(lambda: client.load_collection(collection, timeout=_LOAD_S))

    def _guarded(self, work: Callable[[], T]) -> T:
        """Run `work`; the seam where Milvus's errors, which have many roots, become ours."""
        started = time.monotonic()
        try:
            result = work()
        except Exception as error:
            words = str(getattr(error, "message", "") or error).strip().splitlines()
            reason = f"{type(error).__name__}: {words[0][:300] if words else 'no reason given'}"
            if self._token:
                for secret in {self._token, self._token.partition(":")[2] or self._token}:
                    reason = reason.replace(secret, "...")
            seconds = time.monotonic() - started
            self.trouble = f"after {seconds:.1f} s (FC7_INDEX_TIMEOUT_S={self._timeout:g}), {reason}"
            raise IndexUnreachableError(self.place, self.trouble) from error
        self.trouble = ""
        return result


def is_local(uri: str) -> bool:
    """Tell whether this is a file of Milvus Lite."""
    return uri.endswith(".db")


def _check_uri(uri: str) -> None:
    """Raise IndexUriError for what cannot be an address of Milvus."""
    if "://" in uri and "@" in uri:
        raise IndexUriError(
            re.sub(r"//.*@", "//...@", uri), "it has a user in it: user and password belong in FC7_INDEX_TOKEN"
        )
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise IndexUriError(uri, f"it cannot be read ({error})") from None
    if parts.scheme in ("http", "https"):
        if not host or port == 0:
            raise IndexUriError(uri, "it has no host")
        return
    if parts.scheme or not is_local(uri):
        raise IndexUriError(uri, "no kind of index is known for it")
    folder = Path(uri).absolute().parent
    if not folder.is_dir():
        raise IndexUriError(uri, f"there is no folder {folder}")
    if importlib.util.find_spec("milvus_lite") is None:
        raise IndexUriError(uri, "a file wants Milvus Lite: pip install milvus-lite")
