"""A connection to Milvus: checks the address, limits the time of each call, and translates its errors.

Guarantees: pymilvus is imported only when a connection is made. Every read sees all changes acknowledged before it
(strong consistency). Neither an error nor any other text of this module contains the token.
Out of scope: the content of the collections.
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

from index.bulk.pipeline import batches
from index.errors import (
    IndexFullError,
    IndexUnavailableError,
    IndexUnreachableError,
    IndexUriError,
    MilvusUnsupportedError,
)
from index.milvus.schema import MAX_ROWS, Row, ids_in
from index.records import MilvusAddress
from model_store.errors import MissingExtraError

T = TypeVar("T")
_LOAD_TIMEOUT_S = 600.0  # a cluster may need minutes to load a collection
_ID_BATCH = 500
_WRITE_BATCH = 128
_RETRY_S = 0.1
_MIN_TIMEOUT_S = 0.1
_INDEX_TYPE_CACHE_S = 10.0
# Error codes of Milvus (pkg/util/merr/errors.go); Milvus Lite has only a few of them.
_NOT_LOADED, _NO_COLLECTION, _AWAY = 101, 100, 2
_NO_SUCH_ALIAS = (1600, _NO_COLLECTION)
_DENIED, _DENIED_BY_GRPC = (1400, 1401, 1800), ("UNAUTHENTICATED", "PERMISSION_DENIED")
_FULL = (3, 7, 9)  # limits of memory or disk, and writes denied by a quota


class Milvus:
    """A connection to Milvus. All methods may be called from any thread.

    They raise IndexUnreachableError, IndexFullError for a quota of Milvus, and IndexUnavailableError for a collection
    that was dropped. A call that fails because Milvus is away is repeated until its time limit.
    uri: the address. name: prefix of the index's collections. timeout_s: of each call. trouble: why the last call
    failed; "" if it succeeded.
    """

    def __init__(self, address: MilvusAddress) -> None:
        """Connect. Raises IndexUriError, MissingExtraError, IndexUnreachableError."""
        _check_uri(address.uri)
        try:
            import pymilvus  # noqa: PLC0415 - slow to import, and an optional dependency
        except ImportError:
            raise MissingExtraError("pymilvus", "scale") from None
        # pymilvus logs every error with a traceback in its own format. Our errors are logged by the program instead.
        logging.getLogger("pymilvus").setLevel(logging.CRITICAL)
        self.uri, self.name, self.module, self.trouble = address.uri, address.name, pymilvus, ""
        self._token, self.timeout_s = address.token, address.timeout_s
        self._index_types: dict[str, tuple[float, str]] = {}  # by collection: (time of reading, type)
        self._client: Any = None
        self._client = self._translate_errors(
            lambda: pymilvus.MilvusClient(self.uri, token=self._token or "", timeout=self.timeout_s, dedicated=True)
        )

    def close(self) -> None:
        """Close the connection."""
        client, self._client = self._client, None
        if client is not None:
            client.close()

    # --- collections --------------------------------------------------------------------------------------------------

    def collections(self) -> list[str]:
        """Return the names of all collections."""
        return list(self._call("list_collections"))

    def has(self, collection: str) -> bool:
        """Return whether a collection of this name exists."""
        return bool(self._call("has_collection", collection))

    def open(self, collection: str, schema: Callable[[Any], Any]) -> None:
        """Load a collection. If it does not exist, create it, with exact search by Euclidean distance."""
        if not self.has(collection):
            try:
                fields = schema(self.module)
                self._call("create_collection", collection, schema=fields, consistency_level="Strong")
            except IndexUnreachableError:
                if not self.has(collection):  # otherwise another replica has just created it
                    raise
        elif any(field.name == "preparation" for field in schema(self.module).fields):
            self._add_preparation(collection)
        if not self._call("list_indexes", collection, "vector"):
            index = self.module.MilvusClient.prepare_index_params()
            index.add_index("vector", index_type="FLAT", metric_type="L2")
            self._call("create_index", collection, index_params=index, sync=False)
        if str(self._call("get_load_state", collection)["state"]) != "Loaded":
            self._load(collection)

    def _add_preparation(self, collection: str) -> None:
        """Add the field `preparation` to a collection of an earlier version of fc7; its images have preparation 1."""
        fields = self._call("describe_collection", collection)["fields"]
        if any(each["name"] == "preparation" for each in fields):
            return
        try:
            kind = self.module.DataType.INT64
            self._call("add_collection_field", collection, "preparation", kind, nullable=True, default_value=1)
        except IndexUnreachableError as error:  # Milvus before 2.6, and Milvus Lite
            raise MilvusUnsupportedError(
                self.uri,
                f"the field preparation cannot be added to {collection}",
                "Drop the collections of this index, and index the images again: fc7 index build DIR",
            ) from error

    def index_type(self, collection: str) -> str:
        """Return the type of a collection's vector index, at most 10 seconds old. FLAT compares all vectors."""
        known = self._index_types.get(collection)
        if known is None or time.monotonic() - known[0] > _INDEX_TYPE_CACHE_S:
            names = self._call("list_indexes", collection, "vector")
            found = str(self._call("describe_index", collection, names[0])["index_type"]) if names else "FLAT"
            known = self._index_types[collection] = (time.monotonic(), found)
        return known[1]

    # --- aliases ------------------------------------------------------------------------------------------------------

    def alias(self, name: str) -> str | None:
        """Return the collection that an alias names; None if the alias does not exist."""
        try:
            return str(self._call("describe_alias", name)["collection_name"])
        except IndexUnavailableError as error:
            if _code_of(error.__cause__) not in _NO_SUCH_ALIAS:
                raise
        self.trouble = ""
        return None

    def change_alias(self, method: str, *names: str) -> None:
        """Call `create_alias` or `alter_alias` with (collection, alias), or `drop_alias` with (alias,)."""
        self._call(method, *names)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def rows(self, collection: str, ids: Sequence[str], fields: Sequence[str]) -> dict[str, Row]:
        """Return {id: row} of those rows that exist."""
        found: dict[str, Row] = {}
        for batch in batches(ids, _ID_BATCH):
            rows = self._read("query", collection, fields, filter=ids_in(batch))
            found |= {row["id"]: dict(row) for row in rows}
        return found

    def page(self, collection: str, fields: Sequence[str], *, after: str, limit: int, where: str = "") -> list[Row]:
        """Return up to `limit` rows that match `where`, ordered by id, starting after the id `after`."""
        condition = f'id > "{after}"' + (f" and {where}" if where else "")
        # pymilvus's own iterator sends these options. Without them the rows are not the first ones by id, in order.
        ordered = {"iterator": "True", "reduce_stop_for_best": "True"}
        rows = self._read("query", collection, fields, filter=condition, limit=min(limit, MAX_ROWS), **ordered)
        return [dict(row) for row in rows]

    def pages(self, collection: str, fields: Sequence[str], *, size: int, where: str = "") -> Iterator[list[Row]]:
        """Yield all rows that match `where`, ordered by id. A row that exists throughout is yielded exactly once."""
        after = ""
        while rows := self.page(collection, fields, after=after, limit=size, where=where):
            yield rows
            after = rows[-1]["id"]

    def count(self, collection: str, where: str = "") -> int:
        """Return the number of rows that match `where`."""
        [row] = self._read("query", collection, ["count(*)"], filter=where)
        return int(row["count(*)"])

    def write(self, collection: str, rows: Sequence[Row]) -> None:
        """Insert rows with one call for each 128, replacing those with the same ids."""
        for batch in batches(rows, _WRITE_BATCH):
            self._call("upsert", collection, batch)

    def delete(self, collection: str, ids: Sequence[str]) -> None:
        """Delete the rows that exist among `ids`."""
        if ids:
            self._call("delete", collection, filter=ids_in(ids))

    def search(
        self, collection: str, vectors: Sequence[Any], fields: Sequence[str], *, limit: int, where: str, params: Row
    ) -> list[list[Row]]:
        """Return the `limit` nearest rows of each vector, float32 [4096], as Milvus finds them, nearest first."""
        search_params = {"metric_type": "L2", "params": params}
        options = {"data": list(vectors), "anns_field": "vector", "search_params": search_params}
        results = self._read("search", collection, fields, filter=where, limit=limit, **options)
        return [[{"id": hit["id"], **hit["entity"]} for hit in hits] for hits in results]

    # --- calls --------------------------------------------------------------------------------------------------------

    def _read(self, name: str, collection: str, fields: Sequence[str], **options: Any) -> Any:
        """Call a method that returns these fields of rows, and that sees every acknowledged change."""
        return self._call(name, collection, output_fields=list(fields), consistency_level="Strong", **options)

    def _call(self, name: str, *arguments: Any, **options: Any) -> Any:
        client = self._client
        if client is None:
            raise IndexUnavailableError(self.uri, "it is closed")
        deadline = time.monotonic() + self.timeout_s

        def work() -> Any:
            left_s = max(_MIN_TIMEOUT_S, deadline - time.monotonic())
            return getattr(client, name)(*arguments, timeout=left_s, **options)

        loaded = False
        while True:
            try:
                return self._translate_errors(work)
            except IndexUnreachableError as error:
                code = _code_of(error.__cause__)
                if code == _NOT_LOADED and not loaded:  # Milvus was restarted, or another client released it
                    self._load(arguments[0])
                    loaded = True
                elif (code != _AWAY and getattr(code, "name", "") != "UNAVAILABLE") or time.monotonic() > deadline:
                    raise
                else:  # every call of this class can be repeated
                    time.sleep(_RETRY_S)

    def _load(self, collection: str) -> None:
        client = self._client
        self._translate_errors(lambda: client.load_collection(collection, timeout=_LOAD_TIMEOUT_S))

    def _translate_errors(self, work: Callable[[], T]) -> T:
        """Run `work`, and raise every error of pymilvus as one of the index; they have no common base class."""
        started = time.monotonic()
        try:
            result = work()
        except Exception as error:
            lines = str(getattr(error, "message", "") or error).strip().splitlines()
            reason = f"{type(error).__name__}: {lines[0][:300] if lines else 'no reason given'}"
            if self._token:
                for secret in {self._token, self._token.partition(":")[2] or self._token}:
                    reason = reason.replace(secret, "...")
            seconds = time.monotonic() - started
            self.trouble = f"after {seconds:.1f} s (FC7_INDEX_TIMEOUT_S={self.timeout_s:g}), {reason}"
            raise _translated(self.uri, _code_of(error), self.trouble) from error
        self.trouble = ""
        return result


def _code_of(error: BaseException | None) -> object:
    """Return Milvus's code of an error, or the code of gRPC."""
    code = getattr(error, "code", 0)
    return code() if callable(code) else code


def _translated(uri: str, code: object, reason: str) -> IndexUnavailableError:
    """Return the index's error for an error of Milvus with this code (see `_code_of`)."""
    if code in _FULL:
        return IndexFullError(uri, reason)
    if code == _NO_COLLECTION:
        advice = "Someone dropped it: restore it with milvus-backup, or index the images again with fc7 index build DIR"
        return IndexUnavailableError(uri, f"{reason.rstrip('.')}. {advice}")
    # Milvus reports a wrong password as an unexpected error, or with a code of gRPC.
    if code in _DENIED or getattr(code, "name", "") in _DENIED_BY_GRPC or "auth check failure" in reason:
        reason = f"{reason.rstrip('.')}. Check FC7_INDEX_TOKEN, and the permissions of this user"
    return IndexUnreachableError(uri, reason)


def _check_uri(uri: str) -> None:
    """Raise IndexUriError if `uri` is not an address of Milvus."""
    if "://" in uri and "@" in uri:
        raise IndexUriError(
            re.sub(r"//.*@", "//...@", uri), "it contains a user name. Put user and password into FC7_INDEX_TOKEN"
        )
    try:
        parts = urlsplit(uri)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise IndexUriError(uri, f"it cannot be parsed ({error})") from None
    if parts.scheme in ("http", "https"):
        if not host or port == 0:
            raise IndexUriError(uri, "it has no host")
        return
    if parts.scheme or not uri.endswith(".db"):
        raise IndexUriError(uri, "its scheme is not supported")
    folder = Path(uri).absolute().parent
    if not folder.is_dir():
        raise IndexUriError(uri, f"the folder {folder} does not exist")
    if importlib.util.find_spec("milvus_lite") is None:
        raise IndexUriError(uri, "a file requires Milvus Lite: pip install milvus-lite")
