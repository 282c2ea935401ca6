"""The vector space that is searched, and no other one, is on the device."""

from __future__ import annotations

from pathlib import Path

import pytest

from index.local import index as index_module
from index.records import NewImage, VectorModel
from tests.index.helpers import image, open_index, vector
from tests.index.search.gpu.helpers import cpu_device
from tests.support.server import wait_until

IMAGES = 300


def on_device(index: index_module.LocalImageIndex) -> int:
    device = index.stats().device
    assert device is not None
    return device.vectors


def test_the_device_holds_the_searched_vectors_before_and_after_a_switch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device = cpu_device()
    monkeypatch.setattr(index_module, "open_device", lambda *_: device)
    with open_index(tmp_path) as index:
        index.add_many([image(f"{number}", number) for number in range(IMAGES)])
        wait_until(lambda: on_device(index) == IMAGES)
        [found] = index.search(vector(7)[None], 1)
        assert [neighbour.key for neighbour in found] == ["7"]

        other = VectorModel("e" * 64, "solar:2")
        index.spaces.start_migration(other)
        missing = index.spaces.missing_vectors(other, 0, IMAGES)
        index.spaces.add_vectors(other, missing, [vector(1000 + number) for number in range(IMAGES)])
        assert device.used == IMAGES * 8196, "vectors that are not searched yet are not copied"
        index.spaces.finish(other)
        wait_until(lambda: index.stats().model == "solar:2" and on_device(index) == IMAGES)
        [found] = index.search(vector(1007)[None], 1)
        assert [neighbour.key for neighbour in found] == ["7"]
        assert device.used == on_device(index) * 8196, "the previous vectors were freed"
        [previous] = index.search(vector(7)[None], 1, fingerprint="f" * 64)
        assert [neighbour.key for neighbour in previous] == ["7"]
    assert device.used == 0


def test_an_index_is_opened_with_the_vectors_on_the_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images: list[NewImage] = [image(f"{number}", number) for number in range(IMAGES)]
    with open_index(tmp_path) as index:
        index.add_many(images)
        assert index.stats().device is None
    device = cpu_device()
    monkeypatch.setattr(index_module, "open_device", lambda *_: device)
    with open_index(tmp_path) as index:
        wait_until(lambda: on_device(index) == IMAGES)
        [found] = index.search(vector(7)[None], 2)
        assert found[0].key == "7"
