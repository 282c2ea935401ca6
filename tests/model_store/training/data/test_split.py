"""Choosing validation images: shares, seeds, copies on one side, rare classes, and what a run records."""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from model_store.decoder.decoder import Decoder
from model_store.errors import DatasetError
from model_store.image import prepare
from model_store.training.data.dataset import Dataset
from model_store.training.data.image_file import ALL, ImageFile, Source
from model_store.training.data.perceptual_hash import connected, near_pairs, perceptual_hash
from model_store.training.data.reader import open_dataset
from model_store.training.data.sources import find_source
from model_store.training.data.split import Fingerprint, SplitRule, split_source, write_run_split
from tests.support.training.class_folders import write_class_folders


def source_of(counts: dict[str, int]) -> Source:
    images = [ImageFile(f"{label}/{n}", label, Path(f"{label}/{n}")) for label in counts for n in range(counts[label])]
    return Source(Path("photos"), "class folders", tuple(sorted(counts)), {ALL: tuple(images)})


def fingerprints(source: Source, same: list[list[str]] | None = None) -> dict[ImageFile, Fingerprint]:
    """Return random fingerprints; the images of each list in `same` differ in a few bits."""
    random = np.random.default_rng(0)
    found = {}
    groups = {name: number for number, names in enumerate(same or []) for name in names}
    bases = {number: random.integers(0, 256, 32, np.uint8) for number in set(groups.values())}
    for number, image in enumerate(source.splits[ALL]):
        if image.name in groups:
            bits = bases[groups[image.name]].copy()
            bits[number % 32] ^= 7
        else:
            bits = random.integers(0, 256, 32, np.uint8)
        found[image] = Fingerprint(str(number), bits)
    return found


def test_every_class_keeps_its_share_and_seeds_differ() -> None:
    source = source_of({"cat": 100, "dog": 40, "owl": 3, "yak": 2, "elk": 1})
    prints = fingerprints(source)
    split = split_source(source, prints, SplitRule(0.2))
    assert split.counts("val") == Counter(cat=20, dog=8, owl=1, yak=1)
    assert sum(map(len, split.splits.values())) == 146
    assert not set(split.splits["train"]) & set(split.splits["val"])
    assert split_source(source, prints, SplitRule(0.2)).splits == split.splits
    assert split_source(source, prints, SplitRule(0.2, seed=1)).splits != split.splits
    assert split_source(source, prints, SplitRule(0.5)).counts("val")["dog"] == 20


def test_copies_and_near_identical_pictures_stay_on_one_side() -> None:
    source = source_of({"cat": 40, "dog": 40})
    bursts = [[f"cat/{n}" for n in range(first, first + 4)] for first in range(0, 32, 4)]
    prints = fingerprints(source, bursts)
    copies = [image for image in source.splits[ALL] if image.name in ("dog/3", "cat/39")]
    for image in copies:
        prints[image] = Fingerprint("copy", prints[image].perceptual)
    for seed in range(5):
        val = {image.name for image in split_source(source, prints, SplitRule(0.3, seed)).splits["val"]}
        assert val
        for group in [*bursts, ["dog/3", "cat/39"]]:
            assert len(val & set(group)) in (0, len(group))


def test_a_class_of_few_large_groups_gives_its_smallest_one() -> None:
    source = source_of({"cat": 90, "dog": 40, "owl": 6})
    bursts = [[f"cat/{n}" for n in range(first, last)] for first, last in ((0, 35), (35, 60), (60, 90))]
    prints = fingerprints(source, [*bursts, [f"owl/{n}" for n in range(6)]])
    for seed in range(3):
        split = split_source(source, prints, SplitRule(0.2, seed))
        assert split.counts("val") == Counter(cat=25, dog=8), "owls are all the same, so they stay in train"
        assert {image.name for image in split.splits["val"] if image.label == "cat"} == set(bursts[1])


def test_the_share_must_be_sensible_and_something_must_be_left() -> None:
    for share in (0, 1, -0.5, float("nan")):
        with pytest.raises(DatasetError, match="above 0 and below 1"):
            SplitRule(share)
    source = source_of({"cat": 1, "dog": 1})
    with pytest.raises(DatasetError, match=r"photos can be kept for validation.*one picture"):
        split_source(source, fingerprints(source), SplitRule())


def test_hashes_of_changed_copies_are_near_and_of_other_pictures_far(tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    originals = [
        Image.fromarray(random.integers(0, 256, (9, 12, 3), np.uint8)).resize((400, 300), Image.Resampling.BICUBIC)
        for _ in range(30)
    ]
    hashes = []
    for number, picture in enumerate([*originals, *(each.resize((200, 150)) for each in originals)]):
        picture.save(tmp_path / "x.jpg", quality=90 if number < 30 else 40)
        hashes.append(perceptual_hash(prepare((tmp_path / "x.jpg").read_bytes())))
    pairs = {(one, two) for one, two, _ in near_pairs(np.stack(hashes), [range(60)])}
    assert pairs <= {(number, number + 30) for number in range(30)}
    assert len(pairs) >= 27
    same = np.repeat(np.stack(hashes[:2]), 2_000, axis=0)  # four million pairs, of which two thousand suffice
    linked = list(near_pairs(same, [range(4_000)]))
    assert len(linked) == 3_998
    assert set(connected(4_000, ((one, two) for one, two, _ in linked)).tolist()) == {0, 2_000}
    assert connected(4, iter([(2, 3), (3, 1)])).tolist() == [0, 1, 1, 1]


def opened(path: Path, budget: int = 1 << 30) -> Dataset:
    with ThreadPoolExecutor(2) as workers, Decoder() as decoder:
        return open_dataset(find_source(path), memory_budget=budget, workers=workers, decoder=decoder)


def test_the_recorded_split_opens_as_the_same_data_set(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data", train=8, val=1) / "train"
    (root / "red" / "broken.png").write_bytes(b"x")
    (root / "red" / "copy.png").write_bytes((root / "blue" / "0.png").read_bytes())
    dataset, decoded_again = opened(root), opened(root, budget=0)
    assert dataset.divided is not None
    assert decoded_again.hash == dataset.hash
    assert [len(dataset.train), len(dataset.val), len(dataset.skipped)] == [19, 6, 1]
    assert dataset.duplicates == ()
    assert dataset.conflicts == ((str(root / "blue" / "0.png"), str(root / "red" / "copy.png")),)
    np.testing.assert_array_equal(dataset.statistics.mean, decoded_again.statistics.mean)
    positions = np.array([18, 0])
    expected = [prepare(dataset.train.images[position].read()) for position in positions]
    np.testing.assert_array_equal(dataset.train.pixels(positions), expected)
    assert decoded_again.train.images == dataset.train.images
    write_run_split(tmp_path, dataset.divided)
    again = opened(tmp_path / "split.csv")
    assert (again.hash, again.divided) == (dataset.hash, None)
    assert [image.file for image in again.val.images] == [image.file for image in dataset.val.images]


def test_very_small_pictures_are_named(tmp_path: Path) -> None:
    root = write_class_folders(tmp_path / "data")
    Image.new("RGB", (1, 1)).save(root / "train" / "red" / "dot.png")
    [note] = opened(root).notes
    assert "1 pictures have a side of less than 32 pixels" in note
    assert str(root / "train" / "red" / "dot.png") in note
