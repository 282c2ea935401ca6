"""What all replicas of an index on Milvus share: its format and identity, the names of models, and the known fields.

Guarantees: nothing is cached that another replica may change. A field is registered before the first row has it.
Out of scope: removing a field when its last value is deleted; ordering two replicas that write the same entry (the
later one wins); which model is searched (see aliases.py).
"""

from __future__ import annotations

import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from itertools import count

from index.errors import IndexFormatError, IndexUnavailableError
from index.fields import FieldType
from index.filters import EXISTS, Where
from index.milvus.client import Milvus
from index.milvus.filters import expression, field_id
from index.milvus.schema import META_SUFFIX, collection_of, meta_schema
from index.records import Space, VectorModel

_FORMAT, _IDENTITY, _SPACE, _FIELD, _REEMBED = "format", "identity", "space-", "field-", "reembed"
_PAGE = 1000
_KNOWN_FORMAT = 1
_BEAT_S = 1.0
_DEAD_AFTER_BEATS = 5


class Registry:
    """The collection `name`_meta. All methods may be called from any thread, and raise IndexUnreachableError."""

    def __init__(self, milvus: Milvus, *, create: bool = False) -> None:
        """Load the collection. If it does not exist, create it, or raise IndexUnavailableError without `create`."""
        self._milvus = milvus
        self._collection = milvus.name + META_SUFFIX
        self._registered: set[tuple[str, FieldType]] = set()  # fields are never removed, so they can be cached
        self._registering = threading.Lock()
        if not create and not milvus.has(self._collection):
            reason = f"there is no index named {milvus.name}; create one with fc7 index build DIR"
            raise IndexUnavailableError(milvus.uri, reason)
        milvus.open(self._collection, meta_schema)
        found = int(self._get(_FORMAT) or 0)
        if found > _KNOWN_FORMAT:
            raise IndexFormatError(f"{milvus.name} on Milvus at {milvus.uri}", found, _KNOWN_FORMAT)
        if create and not found:
            self._put({_FORMAT: str(_KNOWN_FORMAT)})

    @property
    def identity(self) -> str:
        """The random identifier of this index."""
        found = self._get(_IDENTITY)
        if found is None:
            self._put({_IDENTITY: uuid.uuid4().hex})
            found = self._get(_IDENTITY) or ""
        return found

    @property
    def searched_in_format_0(self) -> VectorModel | None:
        """The searched model of an index that was made before it had aliases."""
        fingerprint = self._get("active")
        return None if fingerprint is None else self.model(collection_of(self._milvus.name, fingerprint))

    def model(self, collection: str) -> VectorModel:
        """Return the model of a collection, with its last registered name."""
        for entry, value in self._all(_SPACE).items():
            fingerprint = entry.removeprefix(_SPACE)
            if collection_of(self._milvus.name, fingerprint) == collection:
                return VectorModel(fingerprint, str(json.loads(value)["model"]))
        return VectorModel(collection, "an unknown model")

    def add_model(self, model: VectorModel) -> None:
        """Register the name of a model that has vectors here, or will have."""
        self._put({_SPACE + model.fingerprint: json.dumps({"model": model.model})})

    def spaces(self, searched: VectorModel) -> list[Space]:
        """Return the vector spaces that exist, the searched one first."""
        names = {entry.removeprefix(_SPACE): json.loads(value)["model"] for entry, value in self._all(_SPACE).items()}
        models = [VectorModel(fingerprint, name) for fingerprint, name in names.items()]
        models.sort(key=lambda each: (each.fingerprint != searched.fingerprint, each.model))
        existing = self._milvus.collections()
        found: list[Space] = []
        for model in models:
            collection = collection_of(self._milvus.name, model.fingerprint)
            if collection in existing:
                active = model.fingerprint == searched.fingerprint
                vectors = self._milvus.count(collection)
                missing = max(0, (found[0].vectors if found else vectors) - vectors)
                found.append(
                    Space(len(found) + 1, model.fingerprint, model.model, active, vectors, missing, not active)
                )
        return found

    @property
    def heartbeat(self) -> str:
        """A text that the process that re-embeds the index changes every second; "" if there is none."""
        return self._get(_REEMBED) or ""

    @contextmanager
    def sole_reembedder(self) -> Iterator[None]:
        """Change the heartbeat during the block. Raises IndexUnavailableError if another process does so already."""
        before = self.heartbeat
        if before:  # another process, or one that was killed
            time.sleep(_DEAD_AFTER_BEATS * _BEAT_S)
            if self.heartbeat not in ("", before):
                raise IndexUnavailableError(self._milvus.uri, "another fc7 index reembed is running")
        name, ended = uuid.uuid4().hex, threading.Event()

        def beat() -> None:
            for number in count():
                with suppress(IndexUnavailableError):  # the block gets the same error, and this one tries again
                    self._put({_REEMBED: f"{name} {number}"})
                if ended.wait(_BEAT_S):
                    return

        with ThreadPoolExecutor(1, "fc7-heartbeat") as executor:
            executor.submit(beat)
            try:
                yield
            finally:
                ended.set()
        self._milvus.delete(self._collection, [_REEMBED])

    def add_fields(self, fields: Iterable[tuple[str, FieldType]]) -> None:
        """Register these fields. Must be called before a row with them is written."""
        with self._registering:
            new = set(fields) - self._registered
            self._put({_FIELD + field_id(name, kind): json.dumps([name, kind]) for name, kind in new})
            self._registered |= new

    def expression(self, where: Where | None) -> str:
        """Return the Milvus expression of a filter; "" if there is no filter. Raises FilterError."""
        if where is None:
            return ""
        names = {condition.field for condition in where.conditions}
        compared = {condition.field for condition in where.conditions if condition.operator != EXISTS}
        ids = [_FIELD + field_id(name, kind) for name in names for kind in FieldType]
        fields = _fields(row["value"] for row in self._milvus.rows(self._collection, ids, ["id", "value"]).values())
        if compared - fields.keys():  # unknown: read all fields, so that the error can suggest a similar name
            fields = _fields(self._all(_FIELD).values())
        return expression(where, fields)

    def _get(self, entry: str) -> str | None:
        row = self._milvus.rows(self._collection, [entry], ["id", "value"]).get(entry)
        return None if row is None else str(row["value"])

    def _put(self, entries: dict[str, str]) -> None:
        rows = [{"id": entry, "value": value, "vector": [0.0, 0.0]} for entry, value in entries.items()]
        self._milvus.write(self._collection, rows)

    def _all(self, prefix: str) -> dict[str, str]:
        pages = self._milvus.pages(self._collection, ["id", "value"], size=_PAGE, where=f'id like "{prefix}%"')
        return {row["id"]: row["value"] for page in pages for row in page}


def _fields(values: Iterable[str]) -> dict[str, dict[FieldType, int]]:
    """Return the registered fields for `compared_types`. Milvus has no numbers for them, so these are 0."""
    fields: dict[str, dict[FieldType, int]] = {}
    for name, kind in map(json.loads, values):
        fields.setdefault(name, {})[FieldType(kind)] = 0
    return fields
