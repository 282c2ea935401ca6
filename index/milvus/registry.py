"""What all replicas of an index on Milvus agree by: its identity, which collection is searched, the fields it knows.

Promises: nothing is remembered that another replica may change; a field is known from before the first row that has it.
Does not: forget a field when its last value goes; order two replicas that write the same entry (the later one stays).
"""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterable

from index.fields import FieldType
from index.filters import Where
from index.milvus.client import Milvus
from index.milvus.filters import expression, field_id
from index.milvus.schema import IMAGES_INFIX, META_SUFFIX, collection_of, meta_schema
from index.records import Space, VectorModel

_ACTIVE, _IDENTITY, _SPACE, _FIELD = "active", "identity", "space-", "field-"
_PAGE = 1000


class Meta:
    """The collection `name`_meta. All methods may be called from any thread, and raise IndexUnreachableError."""

    def __init__(self, milvus: Milvus, name: str) -> None:
        self._milvus, self._name = milvus, name
        self._collection = name + META_SUFFIX
        self._noted: set[tuple[str, FieldType]] = set()  # never unsaid, so it may be remembered
        self._noting = threading.Lock()

    def exists(self) -> bool:
        """Tell whether there is an index of this name."""
        return self._milvus.has(self._collection)

    def open(self) -> None:
        """Make it when it is missing, and load it."""
        self._milvus.open(self._collection, meta_schema)

    @property
    def identity(self) -> str:
        """What tells this index from every other."""
        found = self._get(_IDENTITY)
        if found is None:
            self._put({_IDENTITY: uuid.uuid4().hex})
            found = self._get(_IDENTITY) or ""
        return found

    @property
    def active(self) -> VectorModel | None:
        """The model whose vectors are to be searched; None in a new index."""
        fingerprint = self._get(_ACTIVE)
        return None if fingerprint is None else self.model(fingerprint)

    def activate(self, model: VectorModel) -> None:
        """Have every replica that can search the vectors of this model."""
        self.note_model(model)
        self._put({_ACTIVE: model.fingerprint})

    def model(self, fingerprint: str) -> VectorModel:
        """Return a model by its fingerprint, with the name it was last noted under."""
        name = self._get(_SPACE + fingerprint)
        return VectorModel(fingerprint, "an unknown model" if name is None else str(json.loads(name)["model"]))

    def note_model(self, model: VectorModel) -> None:
        """Remember the name of a model that has, or is to have, vectors here."""
        self._put({_SPACE + model.fingerprint: json.dumps({"model": model.model})})

    def spaces(self) -> list[Space]:
        """Return the vectors that there are, by model; the searched ones first."""
        active = self._get(_ACTIVE)
        models = [self.model(each.removeprefix(_SPACE)) for each in self._all(_SPACE)]
        models.sort(key=lambda each: (each.fingerprint != active, each.model))
        present = {each for each in self._milvus.collections() if each.startswith(self._name + IMAGES_INFIX)}
        found: list[Space] = []
        for model in models:
            collection = collection_of(self._name, model.fingerprint)
            if collection in present:
                here = model.fingerprint == active
                vectors = self._milvus.count(collection)
                missing = max(0, (found[0].vectors if found else vectors) - vectors)
                found.append(Space(len(found) + 1, model.fingerprint, model.model, here, vectors, missing, not here))
        return found

    def note_fields(self, fields: Iterable[tuple[str, FieldType]]) -> None:
        """Make these fields known, before a row has them."""
        with self._noting:
            fresh = set(fields) - self._noted
            self._put({_FIELD + field_id(name, kind): json.dumps([name, kind]) for name, kind in fresh})
            self._noted |= fresh

    def expression(self, where: Where | None) -> str:
        """Return the expression of a filter, "" of none. Raises FilterError."""
        if where is None:
            return ""
        asked = {condition.field for condition in where.conditions}
        ids = [_FIELD + field_id(name, kind) for name in asked for kind in FieldType]
        types = _types(row["value"] for row in self._milvus.rows(self._collection, ids, ["id", "value"]).values())
        if asked - types.keys():  # all of them, to find the nearest name
            types = _types(self._all(_FIELD).values())
        return expression(where, types)

    def _get(self, entry: str) -> str | None:
        row = self._milvus.rows(self._collection, [entry], ["id", "value"]).get(entry)
        return None if row is None else str(row["value"])

    def _put(self, entries: dict[str, str]) -> None:
        rows = [{"id": entry, "value": value, "vector": [0.0, 0.0]} for entry, value in entries.items()]
        for start in range(0, len(rows), _PAGE):
            self._milvus.write(self._collection, rows[start : start + _PAGE])

    def _all(self, prefix: str) -> dict[str, str]:
        pages = self._milvus.pages(self._collection, ["id", "value"], size=_PAGE, where=f'id like "{prefix}%"')
        return {row["id"]: row["value"] for page in pages for row in page}


def _types(values: Iterable[str]) -> dict[str, list[FieldType]]:
    types: dict[str, list[FieldType]] = {}
    for name, kind in map(json.loads, values):
        types.setdefault(name, []).append(FieldType(kind))
    return types
