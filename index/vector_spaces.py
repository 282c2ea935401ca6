"""The interface to the vector spaces of an index: one per model, and the migration from one to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index import records
from index.catalog.spaces import SwitchResult


class MissingVectors(Protocol):
    """Access to the images without a vector of some model, for the process that computes these vectors."""

    def missing_vectors(self, model: records.VectorModel, after: int, limit: int) -> Sequence[records.Unembedded]:
        """Return up to `limit` images without a vector of `model`, ordered by id, starting after the id `after`."""

    def add_vectors(
        self, model: records.VectorModel, images: Sequence[records.Unembedded], vectors: Sequence[NDArray[np.float32]]
    ) -> int:
        """Store the vectors of `images`, float32 [4096], and return how many were stored.

        Images that were replaced or deleted in the meantime are skipped.
        """

    def drop_unused(self, stopped: Callable[[], bool] = lambda: False) -> None:
        """Delete the vectors that are neither searched, nor the target of a migration, nor kept for a rollback.

        stopped: called after each batch; once it returns True, the rest is left for the next call.
        """


class VectorSpaces(Protocol):
    """The vector spaces of an index, one per model, and the migration from one to another. Thread-safe."""

    @property
    def searched(self) -> records.VectorModel:
        """The model whose vectors are searched."""

    @property
    def target(self) -> records.VectorModel | None:
        """The model that the index is migrating to, or None."""

    @property
    def required(self) -> Sequence[records.VectorModel]:
        """The models for which every added image needs a vector, the searched one first."""

    @property
    def missing(self) -> MissingVectors | None:
        """Access to the missing vectors; None if `fc7 index reembed` computes them, once for all replicas."""

    def describe(self) -> Sequence[records.Space]:
        """Return the vector spaces that exist."""

    def start_migration(self, model: records.VectorModel) -> None:
        """Migrate to this model from now on. Search does not change before `finish`.

        Called with the searched model, it cancels the running migration. If it raises, nothing has changed.
        """

    def finish(self, model: records.VectorModel, skipped: frozenset[int] = frozenset()) -> SwitchResult:
        """Search the vectors of `model` if every image has one, except the images with the ids `skipped`.

        The vectors kept for a rollback are searched although images added since have none, unless that are most.
        Raises IndexSwitchedError if `model` is neither the target nor searched.
        """

    def switch_now(self) -> None:
        """Search the target's vectors although some are missing. Raises IndexModelError if replicas share the index."""
