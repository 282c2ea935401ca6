"""ILSVRC and class folders as sources, preparing shards, and training from them."""

from __future__ import annotations

import hashlib
import json
import resource
import sys
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import webdataset

from model_store.decoder.decoder import Decoder
from model_store.errors import CheckpointError, DatasetError
from model_store.image import PREPARATION, prepare
from model_store.training.data.dataset import Dataset
from model_store.training.data.ilsvrc import ilsvrc_source, is_ilsvrc
from model_store.training.data.image_file import Source
from model_store.training.data.prepare import PROGRESS_FILE, Encoding, prepare_shards
from model_store.training.data.reader import open_dataset
from model_store.training.data.shards import SHARDS_FILE, open_shards, read_folder, verify_shards
from model_store.training.data.sources import find_source
from model_store.training.evaluate import SplitImages
from model_store.training.loop import resume
from service.cli import main
from tests.model_store.training.helpers import RecordingReporter, final_weights, train_trial
from tests.support.training.class_folders import write_class_folders
from tests.support.training.ilsvrc import LABELS, TRAIN, VAL, picture, write_ilsvrc

PNG = Encoding(None)


@pytest.fixture
def workers() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_class_folders(tmp_path_factory.mktemp("shards") / "data")


def files(folder: Path) -> dict[str, str]:
    """Return the hash of every file except the lock."""
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir() if p.suffix != ".lock"}


def called_before(calls: list[bool]) -> bool:
    calls.append(True)
    return calls[-2]


def opened(folder: Path, workers: ThreadPoolExecutor, budget: int = 0) -> Dataset:
    return open_shards(folder, memory_budget=budget, workers=workers, decoder=Decoder())


@pytest.mark.parametrize(("year", "unpacked"), [(2012, False), (2012, True), (2010, False), (2010, True)])
def test_ilsvrc_is_read_as_distributed(tmp_path: Path, year: int, unpacked: bool) -> None:
    root = write_ilsvrc(tmp_path / "ilsvrc", year, unpacked=unpacked)
    assert is_ilsvrc(root)
    source = ilsvrc_source(root)
    assert source.kind == f"ILSVRC-{year}"
    assert source.classes == LABELS  # in the order of the WordNet ids
    assert [image.label for image in source.splits["train"]] == [label for label in LABELS for _ in range(TRAIN)]
    # The ILSVRC ids 1, 2, 3 are the classes 2, 0, 1.
    assert [LABELS.index(image.label) for image in source.splits["val"]] == [1, 2, 0, 0, 1]
    assert [image.read() for image in source.splits["val"]] == [picture(10 + at) for at in range(len(VAL))]
    assert source.splits["train"][0].name == "n01440764/n01440764_0.JPEG"
    assert source.splits["train"][0].read() == picture(2 * TRAIN)
    assert ("test" in source.splits) is (year == 2010)
    assert [LABELS.index(image.label) for image in source.splits.get("test", ())] == ([0, 1] if year == 2010 else [])
    assert source.notes == ()


def test_a_ground_truth_of_the_wrong_length_is_an_error(tmp_path: Path) -> None:
    root = write_ilsvrc(tmp_path / "short", truth=VAL[:-1])
    with pytest.raises(DatasetError, match=r"ILSVRC2012_validation_ground_truth.txt .* 4 lines.* 5 images"):
        ilsvrc_source(root)


@pytest.mark.parametrize(
    ("remove", "message"),
    [
        ("ILSVRC2012_devkit_t12/data/meta.mat", "no development kit"),
        ("ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", "is incomplete"),
        ("train/n03126707.tar", r"no training images of 1 classes: n03126707"),
        ("val/ILSVRC2012_val_00000002.JPEG", "5 lines.* 4 images"),
    ],
)
def test_a_missing_part_of_ilsvrc_is_an_error(tmp_path: Path, remove: str, message: str) -> None:
    root = write_ilsvrc(tmp_path / "ilsvrc", unpacked=True)
    (root / remove).unlink()
    with pytest.raises(DatasetError, match=message):
        ilsvrc_source(root)


def test_a_broken_part_of_ilsvrc_is_an_error(tmp_path: Path) -> None:
    root = write_ilsvrc(tmp_path / "ilsvrc", truth=(9, 1, 2, 2, 3))
    with pytest.raises(DatasetError, match="does not give a class of the development kit for ILSVRC2012_val_00000001"):
        ilsvrc_source(root)
    (root / "ILSVRC2012_img_val.tar").write_bytes(b"no tar at all" * 100)
    with pytest.raises(DatasetError, match=r"img_val\.tar cannot be read as a tar"):
        ilsvrc_source(root)
    other = write_ilsvrc(tmp_path / "other", unpacked=True)
    (other / "train" / "n01440764" / "n01440764_0.JPEG").unlink()
    assert ilsvrc_source(other).notes == ("n01440764 has 1 training images, but the development kit announces 2.",)
    (other / "ILSVRC2012_devkit_t12/data/meta.mat").write_bytes(b"MATLAB no more")
    with pytest.raises(DatasetError, match=r"meta\.mat of .* is not a table"):
        ilsvrc_source(other)


def test_shards_contain_the_same_pixels_and_statistics_as_class_folders(
    folders: Path, tmp_path: Path, workers: ThreadPoolExecutor
) -> None:
    assert prepare_shards(find_source(folders), tmp_path, encoding=PNG, shard_images=4, workers=2)
    expected = open_dataset(find_source(folders), memory_budget=0, workers=workers, decoder=Decoder())
    for budget in (0, 1 << 30):
        found = opened(tmp_path, workers, budget)
        assert found.classes == expected.classes
        assert found.train.in_memory is (budget > 0)
        assert found.class_counts().tolist() == expected.class_counts().tolist()
        order = np.argsort(found.train.labels, kind="stable")
        prepared = {pixels.tobytes() for pixels in found.train.pixels(order)}
        assert prepared == {pixels.tobytes() for pixels in expected.train.pixels(np.arange(18))}
        np.testing.assert_array_equal(found.val.pixels(np.arange(6)), expected.val.pixels(np.arange(6)))
        np.testing.assert_array_equal(found.statistics.mean, expected.statistics.mean)
        np.testing.assert_array_equal(found.statistics.eigenvalues, expected.statistics.eigenvalues)
    assert [shard.images for shard in read_folder(tmp_path).splits["train"]] == [4, 4, 4, 4, 2]
    first = {int(label) for label in found.train.labels[:4]}
    assert len(first) > 1  # the training images are not ordered by class
    images = SplitImages(tmp_path, "val")
    assert [label for _, label in images] == ["blue"] * 2 + ["green"] * 2 + ["red"] * 2
    np.testing.assert_array_equal(images.sample(6), expected.val.pixels(np.arange(6)))


@pytest.mark.filterwarnings("ignore::ResourceWarning")  # webdataset does not close its files
def test_shards_are_valid_webdataset_tars(folders: Path, tmp_path: Path) -> None:
    prepare_shards(find_source(folders), tmp_path, shard_images=100, workers=2)
    path = tmp_path / "train-000000.tar"
    samples = list(webdataset.WebDataset(str(path), shardshuffle=False).decode("rgb8").to_tuple("jpg", "cls"))
    assert len(samples) == 18
    assert all(pixels.shape == (256, 256, 3) for pixels, _ in samples)
    for pixels, label in samples:  # blue, green, red: the brightest channel gives the class
        assert pixels.mean((0, 1)).argmax() == 2 - label
    with tarfile.open(path) as tar:
        assert tar.getnames()[:2] == ["00000000.jpg", "00000000.cls"]


def test_a_resumed_preparation_gives_the_same_bytes(tmp_path: Path) -> None:
    data = write_class_folders(tmp_path / "data")
    for name in ("blue", "green", "red"):
        (data / "train" / name / "0.png").write_bytes(b"no image")
    source, whole, parts = find_source(data), tmp_path / "whole", tmp_path / "parts"
    prepare_shards(source, whole, shard_images=4, workers=2)
    rounds = 0
    while True:
        calls = [False]  # stop before the second shard
        done = prepare_shards(source, parts, shard_images=4, workers=1, stop=partial(called_before, calls))
        rounds += 1
        if done:
            break
        assert not (parts / SHARDS_FILE).exists()
        with pytest.raises(DatasetError, match="train"):
            SplitImages(parts, "train")
        if rounds < 5:  # the fifth round writes the last shard of the training images
            (parts / "train-000004.tar").write_bytes(b"left by a process that was killed before it wrote the index")
    assert rounds > 5  # one shard per round
    assert files(parts) == files(whole)
    assert len(json.loads((parts / "skipped.json").read_text())) == 3
    assert not (parts / PROGRESS_FILE).exists()
    before = (whole / SHARDS_FILE).stat().st_mtime_ns
    assert prepare_shards(source, whole, shard_images=4, workers=2)
    assert (whole / SHARDS_FILE).stat().st_mtime_ns == before


def test_shards_of_different_images_or_options_are_not_mixed(folders: Path, tmp_path: Path) -> None:
    source = find_source(folders)
    stopped = [False, True]
    assert not prepare_shards(source, tmp_path, shard_images=4, workers=1, stop=lambda: stopped.pop(0))
    with pytest.raises(DatasetError, match="other images, with other options"):
        prepare_shards(source, tmp_path, shard_images=5, workers=1)
    fewer = Source(source.root, source.kind, source.classes, dict(source.splits) | {"val": source.splits["val"][:-1]})
    with pytest.raises(DatasetError, match="other images, with other options"):
        prepare_shards(fewer, tmp_path, shard_images=4, workers=1)
    assert prepare_shards(source, tmp_path, shard_images=4, workers=1)
    with pytest.raises(DatasetError, match="other images, with other options"):
        prepare_shards(source, tmp_path, encoding=PNG, shard_images=4, workers=1)


def test_preparation_resumes_after_a_full_disk(folders: Path, tmp_path: Path) -> None:
    source, limits = find_source(folders), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))
    try:
        with pytest.raises(DatasetError, match="Free some disk space and try again"):
            prepare_shards(source, tmp_path / "out", shard_images=4, workers=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert not list((tmp_path / "out").glob("*.tar*"))
    assert not list((tmp_path / "out").glob(".*.tar*"))
    assert prepare_shards(source, tmp_path / "out", shard_images=4, workers=1)
    prepare_shards(source, tmp_path / "whole", shard_images=4, workers=1)
    assert files(tmp_path / "out") == files(tmp_path / "whole")


def test_unreadable_images_and_duplicates_are_reported(tmp_path: Path, workers: ThreadPoolExecutor) -> None:
    data = write_class_folders(tmp_path / "data")
    (data / "train" / "red" / "0.png").write_bytes(b"no image")
    (data / "val" / "blue" / "0.png").write_bytes((data / "train" / "blue" / "1.png").read_bytes())
    prepare_shards(find_source(data), tmp_path / "out", shard_images=4, workers=2)
    found = opened(tmp_path / "out", workers)
    assert [str(item.path) for item in found.skipped] == ["train/train/red/0.png"]
    assert (len(found.train), len(found.duplicates)) == (17, 1)
    for path in (data / "val" / "red").iterdir():
        path.write_bytes(b"no image either")
    with pytest.raises(DatasetError, match="None of the images of class 'red' in val"):
        prepare_shards(find_source(data), tmp_path / "broken", shard_images=4, workers=2)


def test_a_changed_shard_is_detected(folders: Path, tmp_path: Path) -> None:
    prepare_shards(find_source(folders), tmp_path, shard_images=10, workers=2)
    seen: list[tuple[int, int]] = []
    assert verify_shards(tmp_path, lambda done, total: seen.append((done, total))).hash == read_folder(tmp_path).hash
    assert seen == [(1, 3), (2, 3), (3, 3)]
    path = tmp_path / "train-000001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole[:700] + bytes([whole[700] ^ 1]) + whole[701:])
    with pytest.raises(DatasetError, match=r"train-000001.tar has SHA-256"):
        verify_shards(tmp_path)
    path.write_bytes(whole[:-1])
    with pytest.raises(DatasetError, match=r"train-000001.tar has .* bytes instead of"):
        read_folder(tmp_path)
    path.unlink()
    with pytest.raises(DatasetError, match=r"train-000001.tar is missing"):
        read_folder(tmp_path)


def test_a_run_trains_from_shards_and_detects_changed_ones(folders: Path, tmp_path: Path) -> None:
    source = find_source(folders)
    prepare_shards(source, tmp_path / "png", encoding=PNG, shard_images=4, workers=2)
    one = train_trial(tmp_path / "png", tmp_path)
    assert one.finished
    stopped = train_trial(tmp_path / "png", tmp_path, reporter=RecordingReporter(2)).run
    prepare_shards(source, tmp_path / "jpeg", shard_images=4, workers=2)
    with pytest.raises(CheckpointError, match="--force"):
        resume(stopped, data=tmp_path / "jpeg")
    assert resume(stopped).finished
    first, second = final_weights(one.run), final_weights(stopped)
    assert all(bool((first[name] == second[name]).all()) for name in first)


def test_the_commands_ilsvrc_prepare_and_verify_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root, out = write_ilsvrc(tmp_path / "ilsvrc"), tmp_path / "out"

    def fc7(*words: str) -> str:
        monkeypatch.setattr(sys, "argv", ["fc7", "data", *words])
        with pytest.raises(SystemExit) as exit_:
            main()
        output = capsys.readouterr()
        assert exit_.value.code == 0, output
        return output.out + output.err

    assert "ILSVRC-2012" in fc7("ilsvrc", str(root))
    assert "11 images in 4 shards" in fc7("prepare", str(root), str(out), "--shard-images", "3")
    assert "All checksums match: 6 of train, 5 of val" in fc7("verify", str(out))
    values = json.loads((out / SHARDS_FILE).read_text())
    assert values["classes"] == list(LABELS)
    assert values["preparation"] == PREPARATION
    expected = prepare(picture(10))
    assert np.abs(next(iter(SplitImages(out, "val")))[0].astype(int) - expected).max() <= 2
    (out / SHARDS_FILE).write_text(json.dumps(values | {"preparation": PREPARATION - 1}))
    with pytest.raises(DatasetError, match=r"prepared by another version.*fc7 data prepare"):
        read_folder(out)
