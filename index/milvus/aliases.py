"""Which collection of an index is searched, and how search switches to another one.

Two Milvus aliases name the searched collection: `NAME_images` always, and `NAME_writable` while changes are allowed.
A switch pauses changes (`pause` drops `NAME_writable`), compares the two collections a last time, and lets changes
continue in the new one (`resume` creates `NAME_writable` for it). Milvus creates an alias only if no other collection
has it. So if a switch seems to be dead and someone resumes changes in the old collection, exactly one of the two wins.

Guarantees: aliases are read from Milvus's coordinator, never from a cache. A change that is confirmed by a `read` after
it was written is in the searched collection: either no switch has started, or its last comparison is still to come.
Out of scope: searching through an alias. It could name another model's vectors between embedding a query and
searching it, so collections are always addressed by their own names.
"""

from __future__ import annotations

from dataclasses import dataclass

from index.errors import IndexSwitchedError, IndexUnavailableError
from index.milvus.client import Milvus


@dataclass(frozen=True, slots=True)
class Searched:
    """The searched collection, and whether changes are allowed now."""

    collection: str
    writable: bool


class Aliases:
    """The aliases of one index. All methods may be called from any thread, and raise IndexUnreachableError."""

    def __init__(self, milvus: Milvus) -> None:
        self._milvus = milvus
        self._searched, self._writable = f"{milvus.name}_images", f"{milvus.name}_writable"

    def read(self) -> Searched | None:
        """Return the searched collection; None in a new index."""
        collection = self._milvus.alias(self._writable)
        if collection is not None:
            return Searched(collection, writable=True)
        collection = self._milvus.alias(self._searched)
        return None if collection is None else Searched(collection, writable=False)

    def pause(self, collection: str) -> None:
        """Stop changes of the searched collection. Raises IndexSwitchedError if that is not `collection`."""
        found = self.read()
        if found is None or found.collection != collection:
            raise IndexSwitchedError(self._milvus.uri, "another process did it")
        self._name_searched(collection)
        self._milvus.change_alias("drop_alias", self._writable)

    def resume(self, collection: str) -> bool:
        """Search `collection`, and allow changes of it. Returns False if changes are allowed elsewhere already."""
        try:
            self._milvus.change_alias("create_alias", collection, self._writable)
        except IndexUnavailableError:
            if self._milvus.alias(self._writable) is None:
                raise
        if self._milvus.alias(self._writable) != collection:
            return False
        self._name_searched(collection)
        return True

    def _name_searched(self, collection: str) -> None:
        named = self._milvus.alias(self._searched)
        if named != collection:
            self._milvus.change_alias("create_alias" if named is None else "alter_alias", collection, self._searched)
