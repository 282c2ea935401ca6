"""Random migrations, rollbacks, changes, restarts and kills of a local index, compared with a simple model of it."""

from __future__ import annotations

import random
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import HealthCheck, seed, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from numpy.typing import NDArray

from index.catalog.spaces import SwitchResult
from index.errors import IndexModelError, IndexSwitchedError
from index.local.index import LocalImageIndex
from index.records import IndexOptions, NewImage, VectorModel
from tests.index.helpers import exact, picture, sha256

MODELS = [VectorModel(letter * 64, f"solar:{number}") for number, letter in enumerate("abcd", 1)]
models, keys, contents = st.sampled_from(MODELS), st.sampled_from("pqrstuvw"), st.integers(0, 4)


@cache
def vector(model: VectorModel, content: int) -> NDArray[np.float32]:
    """Return the vector that a model computes from a picture."""
    seed = 100 * MODELS.index(model) + content
    return np.abs(np.random.default_rng(seed).standard_normal(4096, np.float32))


class SpacesMachine(RuleBasedStateMachine):
    """An index in a folder, and what should be in it.

    images: the content of each key. vectors: the keys that have a vector, by model, for each space that exists.
    """

    def __init__(self) -> None:
        super().__init__()
        self.root = Path(tempfile.mkdtemp(prefix="fc7-spaces-"))
        self.home, self.homes = self.root / "0", 0
        self.images: dict[str, int] = {}
        self.vectors: dict[VectorModel, set[str]] = {}
        self.active = self.target = self.kept = None  # type: VectorModel | None
        self.kept_in_memory = False
        self.index: LocalImageIndex | None = None

    def teardown(self) -> None:
        if self.index is not None:
            self.index.close()
        shutil.rmtree(self.root)

    # --- steps --------------------------------------------------------------------------------------------------------

    @initialize(model=models, keep=st.booleans())
    def create(self, model: VectorModel, keep: bool) -> None:
        self.keep = keep
        self._open(model)

    @rule(key=keys, content=contents, before_migration=st.booleans())
    def add(self, key: str, content: int, before_migration: bool) -> None:
        """Add or replace an image. before_migration: it was embedded before the migration started."""
        assert self.index is not None
        required = [model for model in (self.active, self.target) if model is not None][: 1 if before_migration else 2]
        rows = {model.fingerprint: vector(model, content) for model in required}
        image = NewImage(key, sha256(content), 1, 1, 1, None, picture(content), rows[required[0].fingerprint], rows)
        self.index.add_many([image])
        if self.images.get(key) != content:
            for having in self.vectors.values():
                having.discard(key)
        self.images[key] = content
        for model in required:
            self.vectors[model].add(key)

    @rule(key=keys)
    def add_for_another_model(self, key: str) -> None:
        other = next(model for model in MODELS if model not in (self.active, self.target))
        image = NewImage(key, sha256(9), 1, 1, 1, None, None, vector(other, 9), {other.fingerprint: vector(other, 9)})
        with pytest.raises(IndexSwitchedError):
            self._index.add_many([image])

    @precondition(lambda self: self.images)
    @rule(data=st.data())
    def delete(self, data: st.DataObject) -> None:
        key = data.draw(st.sampled_from(sorted(self.images)))
        self._index.delete(key)
        del self.images[key]
        for having in self.vectors.values():
            having.discard(key)

    @rule(model=models)
    def start_migration(self, model: VectorModel) -> None:
        self._index.spaces.start_migration(model)
        self.target = None if model == self.active else model
        self.vectors.setdefault(model, set())

    @rule(count=st.integers(1, 5))
    def fill(self, count: int) -> None:
        """Compute a page of missing vectors."""
        model = self.target or self._active
        missing = self._index.spaces.missing_vectors(model, 0, count)
        assert {image.key for image in missing} <= self.images.keys() - self.vectors[model]
        stored = self._index.spaces.add_vectors(model, missing, [vector(model, self.images[i.key]) for i in missing])
        assert stored == min(count, len(self.images.keys() - self.vectors[model]))
        self.vectors[model] |= {image.key for image in missing}

    @rule(model=models, skip=st.booleans())
    def finish(self, model: VectorModel, skip: bool) -> None:
        """Try to switch. skip: all images without a vector are known to have no picture."""
        spaces = self._index.spaces
        if model not in (self.active, self.target):
            with pytest.raises(IndexSwitchedError):
                spaces.finish(model)
            return
        missing = self.images.keys() - self.vectors[model]
        skipped = frozenset(i.id for i in spaces.missing_vectors(model, 0, 100)) if skip else frozenset()
        result = spaces.finish(model, skipped)
        mostly_there = 2 * len(self.vectors[model]) >= len(self.images)
        if model == self.kept and mostly_there:
            expected = SwitchResult.DONE
        elif missing and not skip:
            expected = SwitchResult.INCOMPLETE
        else:
            expected = SwitchResult.DONE if mostly_there or model == self.active else SwitchResult.TOO_FEW_VECTORS
        assert result is expected
        if result is SwitchResult.DONE:
            self._switched(model)

    @rule(model=models)
    def migrate_completely(self, model: VectorModel) -> None:
        self.start_migration(model)
        self.fill(100)
        self.finish(model, skip=False)
        assert self.active == model

    @rule()
    def switch_now(self) -> None:
        self._index.spaces.switch_now()
        if self.target is not None:
            self._switched(self.target)

    @rule()
    def drop_unused(self) -> None:
        self._index.spaces.drop_unused()
        self.vectors = {m: having for m, having in self.vectors.items() if m in (self.active, self.target, self.kept)}

    @rule(model=models)
    def search_named_model(self, model: VectorModel) -> None:
        """Search with a version that the request names: only the searched and the kept vectors can be used."""
        if model in (self.active, self.kept):
            self._check_search(model)
            self.kept_in_memory |= model == self.kept
        else:
            with pytest.raises(IndexModelError):
                self._index.search(vector(model, 0)[np.newaxis], 1, fingerprint=model.fingerprint)

    @rule(model=models)
    def restart(self, model: VectorModel) -> None:
        self._index.close()
        self._open(model)

    @rule(model=models)
    def kill(self, model: VectorModel) -> None:
        """Go on with a copy of the files that is taken while the index is open and no commit is running."""
        self.homes += 1
        self.home, old = self.root / str(self.homes), self.home
        with self._index._catalog.commit_lock:
            shutil.copytree(old, self.home)
        self._index.close()
        shutil.rmtree(old)
        self._open(model)

    # --- what must be true after each step ----------------------------------------------------------------------------

    @invariant()
    def roles_agree_in_memory_and_on_disk(self) -> None:
        if self.index is None:
            return
        spaces = self.index.spaces
        assert (spaces.searched, spaces.target) == (self.active, self.target)
        on_disk = {space.model: (space.active, space.target, space.kept) for space in spaces.describe()}
        for model in MODELS:
            roles = (model == self.active, model == self.target, model == self.kept)
            assert on_disk.get(model.model, (False, False, False)) == roles
        kept = [self.kept] if self.kept_in_memory else []
        in_memory = {model for model in (self.active, self.target, *kept) if model is not None}
        loaded = {space.model: len(space.searcher) for space in spaces.loaded}
        assert loaded == {model: len(self.vectors[model]) for model in in_memory}

    @invariant()
    def every_image_is_there_once_and_found_by_its_vector(self) -> None:
        if self.index is None:
            return
        listed = sorted((image.key, image.sha256) for image in self.index.list(100).images)
        assert listed == sorted((key, sha256(content)) for key, content in self.images.items())
        self._check_search(self._active)

    def _check_search(self, model: VectorModel) -> None:
        found = sorted(self.vectors[model])
        query = vector(model, 0)
        [neighbours] = self._index.search(query[np.newaxis], 100, fingerprint=model.fingerprint)
        expected = exact(np.array([vector(model, self.images[key]) for key in found]).reshape(-1, 4096), query)
        assert sorted(n.key for n in neighbours) == found
        np.testing.assert_allclose(
            [n.distance for n in sorted(neighbours, key=lambda n: n.key)], expected, rtol=1e-6, atol=1e-6
        )

    # --- helpers ------------------------------------------------------------------------------------------------------

    @property
    def _index(self) -> LocalImageIndex:
        assert self.index is not None
        return self.index

    @property
    def _active(self) -> VectorModel:
        assert self.active is not None
        return self.active

    def _open(self, model: VectorModel) -> None:
        options: dict[str, Any] = {"keep_previous": self.keep, "threads": 1}
        self.index = LocalImageIndex.open(
            self.home, IndexOptions(model.fingerprint, model.model, migrate=True, **options)
        )
        self.target, self.kept_in_memory = None, False
        self.vectors.setdefault(model, set())
        if model != self.active:
            if self.active is not None and self.vectors[self.active]:
                self.target = model
            else:
                self._switched(model)
                self.kept_in_memory = False

    def _switched(self, model: VectorModel) -> None:
        """Apply what a switch changes."""
        if model != self.active:
            self.kept = self.active if self.keep else None
            self.active, self.target, self.kept_in_memory = model, None, self.keep


def run(*, max_examples: int, steps: int, random_seed: int | None) -> None:
    profile = settings(
        max_examples=max_examples,
        stateful_step_count=steps,
        deadline=None,
        derandomize=random_seed is None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    machine = type("Machine", (SpacesMachine,), {})
    run_state_machine_as_test(machine if random_seed is None else seed(random_seed)(machine), settings=profile)


def test_random_sequences_of_migrations_agree_with_a_model() -> None:
    run(max_examples=15, steps=20, random_seed=None)


@pytest.mark.slow
@pytest.mark.parametrize("random_seed", [random.randrange(10**6)])  # a failure names it
def test_many_random_sequences_of_migrations_agree_with_a_model(random_seed: int) -> None:
    run(max_examples=200, steps=50, random_seed=random_seed)
