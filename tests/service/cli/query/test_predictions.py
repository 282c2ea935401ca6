"""`fc7 classify SOURCE --out FILE`: rows for all images of a folder or an archive, and resuming."""

from __future__ import annotations

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest

from index.bulk.predict import PredictedImage
from index.bulk.prediction_file import Options, PredictionFile
from index.errors import IndexFullError, TargetExistsError
from model_store.artifact import Artifact
from model_store.errors import Fc7Error
from model_store.store import ModelStore
from tests.service.cli.helpers import invoke
from tests.support import pictures
from tests.support.novelty import FOREIGN, OWN, publish_with_reference
from tests.support.object_store import BUCKET, object_store


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "photos"
    (root / "cats").mkdir(parents=True)
    for seed in range(5):
        (root / "cats" / f"{seed}.jpg").write_bytes(pictures.jpeg(seed))
    (root / "broken.png").write_bytes(b"no picture")
    (root / "notes.txt").write_text("notes")
    return root


def test_each_image_gets_a_row_and_the_formats_agree(home: Path, folder: Path, tmp_path: Path) -> None:
    for suffix in ("csv", "jsonl", "parquet"):
        done = invoke(home, "classify", folder, "--out", tmp_path / f"a.{suffix}", "-k", "2")
        assert done.exit_code == 0, done.output
        assert "6 images classified with tiny:1" in done.stderr
        assert "1 of them could not be read" in done.stderr
        assert f"Next: fc7 index build {folder}, then fc7 search IMAGE" in done.stderr
        assert "notes.txt" in done.stderr
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    lines = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    table = pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()
    assert [row["path"] for row in rows] == ["broken.png", *(f"cats/{seed}.jpg" for seed in range(5))]
    assert [row["path"] for row in rows] == [line["path"] for line in lines] == [line["path"] for line in table]
    assert rows[0]["label_1"] == ""
    assert rows[0]["error"] == lines[0]["error"] == table[0]["error"] != ""
    shown = json.loads(invoke(home, "classify", folder / "cats/3.jpg", "--json", "-k", "2").stdout)["results"][0]
    expected: list[Any] = [
        (entry["label"], pytest.approx(entry["probability"], abs=1e-5)) for entry in shown["predictions"]
    ]
    assert [(rows[4][f"label_{rank}"], float(rows[4][f"probability_{rank}"])) for rank in (1, 2)] == expected
    for line in (lines[4], table[4]):
        assert [(entry["label"], entry["probability"]) for entry in line["predictions"]] == expected
    assert not list(tmp_path.glob(".a.*"))


def test_an_archive_gives_the_same_rows_with_embeddings(home: Path, folder: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as archive:
        for path in sorted(folder.rglob("*.*")):
            archive.write(path, path.relative_to(folder))
    for name, source in (("a", folder), ("b", tmp_path / "photos.zip")):
        done = invoke(home, "classify", source, "--out", tmp_path / f"{name}.parquet", "--embeddings")
        assert done.exit_code == 0, done.output
    first, second = (pyarrow.parquet.read_table(tmp_path / f"{name}.parquet").to_pylist() for name in "ab")
    assert [row["path"] for row in first] == [row["path"] for row in second]
    np.testing.assert_array_equal(first[2]["embedding"], second[2]["embedding"])
    assert len(first[2]["embedding"]) == 4096
    assert first[0]["embedding"] is None


@pytest.mark.parametrize("scheme", ["s3", "file"])
def test_a_uri_gives_the_same_rows_as_a_folder(home: Path, folder: Path, tmp_path: Path, scheme: str) -> None:
    with object_store(folder.parent) as address:
        root = folder.parent.as_uri() if scheme == "file" else f"s3://key:secret@{BUCKET}"
        query = "" if scheme == "file" else f"?{address}"
        for name, source in (("a", str(folder)), ("b", f"{root}/photos{query}")):
            done = invoke(home, "classify", source, "--out", tmp_path / f"{name}.csv")
            assert done.exit_code == 0, (done.output, done.exception)
            assert "6 images classified" in done.stderr
        missing = invoke(home, "classify", f"{root}/gone{query}", "--out", tmp_path / "c.csv")
    assert (tmp_path / "a.csv").read_text() == (tmp_path / "b.csv").read_text()
    assert "does not exist" in str(missing.exception)
    assert f"{root.replace('key:secret@', '')}/gone cannot" in str(missing.exception)
    assert f"{root.replace('key:secret@', '')}/photos/notes.txt: Its name" in done.stderr.replace(
        f"{folder}", f"{root}/photos"
    )
    assert "secret" not in done.stderr + str(missing.exception)
    assert not list(tmp_path.glob(".c.*"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{folder}"], "add --out FILE"),
        (["{folder}", "--out", "{tmp}/a.xml"], "the file must end with .csv, .jsonl or .parquet"),
        (["{folder}", "--out", "{tmp}/a.csv", "--embeddings"], ".jsonl or .parquet, for embeddings"),
        (["{folder}/none", "--out", "{tmp}/a.csv"], "there is no such folder or archive"),
        (["{folder}/notes.txt", "--out", "{tmp}/a.csv"], "notes.txt cannot be read"),
        (["{image}", "--out", "{tmp}/a.csv"], "it is one image: give a folder or an archive, or no --out"),
        (["{folder}/empty", "--out", "{tmp}/a.csv"], "empty has no images"),
    ],
)
def test_wrong_use_is_explained(home: Path, folder: Path, tmp_path: Path, arguments: list[str], message: str) -> None:
    (folder / "empty").mkdir()
    image = next(folder.rglob("*.png"))
    words = [word.format(folder=folder, tmp=tmp_path, image=image) for word in arguments]
    done = invoke(home, "classify", *words)
    assert done.exit_code in (1, 2)
    assert message in " ".join(f"{done.stderr} {done.exception}".replace("│", " ").split())
    assert not [path.name for path in tmp_path.iterdir() if path.name.startswith((".a", "a."))]


def row(name: str) -> PredictedImage:
    return PredictedImage(name, np.full(6, 1 / 6, np.float32), np.zeros(4096, np.float32), None)


@pytest.fixture
def artifact(home: Path) -> Artifact:
    return ModelStore(home).active_artifact()


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_an_interrupted_file_continues_after_its_parts(tmp_path: Path, artifact: Artifact, suffix: str) -> None:
    target, options = tmp_path / f"a{suffix}", Options(1, embeddings=False, views=1, threshold=0.95)
    file = PredictionFile(target, "here", artifact, options).__enter__()
    file.add([row("a"), row("b")])
    file.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    assert not target.exists()
    with pytest.raises(
        Fc7Error, match=r"another source, model or options: top 1 instead of 2\. To start again, delete"
    ):
        PredictionFile(target, "here", artifact, Options(2, embeddings=False, views=1, threshold=0.95)).__enter__()
    with PredictionFile(target, "here", artifact, options) as file:
        assert file.done == {"a": None, "b": None}
        with pytest.raises(Fc7Error, match="being written by another process"):
            PredictionFile(target, "here", artifact, options).__enter__()
        file.add([row("c")])
    if suffix == ".parquet":
        assert pyarrow.parquet.read_table(target)["path"].to_pylist() == ["a", "b", "c"]
    else:
        assert len(target.read_text().splitlines()) == (4 if suffix == ".csv" else 3)
    with pytest.raises(TargetExistsError):
        PredictionFile(target, "here", artifact, options).__enter__()
    assert not list(tmp_path.glob(".a.*"))


def test_a_resumed_run_lists_what_could_not_be_read_before(home: Path, folder: Path, tmp_path: Path) -> None:
    target, options = tmp_path / "a.csv", Options(5, embeddings=False, views=1, threshold=0.95)
    interrupted = PredictionFile(target, str(folder), ModelStore(home).active_artifact(), options).__enter__()
    interrupted.add([PredictedImage("broken.png", None, None, "It is broken.")])
    interrupted.__exit__(KeyboardInterrupt, KeyboardInterrupt(), None)
    done = invoke(home, "classify", folder, "--out", target, "--json")
    assert "broken.png: It is broken" in done.stderr
    assert "5 images classified" in done.stderr
    assert "after 1 in an earlier run; 1 of them could not be read" in done.stderr
    assert (json.loads(done.stdout)["images"], json.loads(done.stdout)["failed"]) == (5, 1)


def test_a_full_disk_is_named_and_the_complete_parts_stay(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, options = tmp_path / "a.csv", Options(1, embeddings=False, views=1, threshold=0.95)

    def fail(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    file = PredictionFile(target, "here", artifact, options).__enter__()
    file.add([row(str(number)) for number in range(1024)])
    file.add([row("last")])
    monkeypatch.setattr("index.bulk.prediction_file.write_atomic", fail)
    with pytest.raises(IndexFullError, match="The disk is too full to write to"):
        file.__exit__(None, None, None)
    monkeypatch.undo()
    assert not target.exists()
    with PredictionFile(target, "here", artifact, options) as file:
        assert list(file.done) == [str(number) for number in range(1024)]
        file.add([row("last")])
    assert len(target.read_text().splitlines()) == 1026


def test_a_slow_run_writes_a_part_after_half_a_minute(
    tmp_path: Path, artifact: Artifact, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("index.bulk.prediction_file.time.monotonic", lambda: now[0])
    target, options = tmp_path / "a.parquet", Options(1, embeddings=False, views=1, threshold=0.95)
    with PredictionFile(target, "here", artifact, options) as file:
        for number in range(8):
            now[0] += 20
            file.add([row(str(number))])
        assert len(list(tmp_path.glob(".a.parquet.parts/*.parquet"))) == 4
    assert pyarrow.parquet.read_table(target)["path"].to_pylist() == [str(number) for number in range(8)]


def test_a_killed_run_resumes_and_each_image_has_one_row(home: Path, tmp_path: Path) -> None:
    folder, target = tmp_path / "many", tmp_path / "a.jsonl"
    folder.mkdir()
    picture = pictures.jpeg(1, 40, 30)
    for number in range(1200):
        (folder / f"{number:04}.jpg").write_bytes(picture)
    command = [sys.executable, "-c", "from service.cli import main; main()", "classify", str(folder), "--out"]
    process = subprocess.Popen([*command, str(target), "--home", str(home)], stderr=subprocess.DEVNULL)
    while not list(tmp_path.glob(".a.jsonl.parts/*.jsonl")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not target.exists()
    done = invoke(home, "classify", folder, "--out", target)
    assert "Resuming: 1,024 images are done already" in done.stderr
    names = [json.loads(line)["path"] for line in target.read_text().splitlines()]
    assert names == [f"{number:04}.jpg" for number in range(1200)]


def test_the_files_have_the_novelty_of_each_image(tmp_path: Path) -> None:
    home, folder = tmp_path / "home", tmp_path / "photos"
    publish_with_reference(home)
    folder.mkdir()
    for name, data in (("broken.jpg", b"no picture"), ("foreign.png", FOREIGN), ("own.jpg", OWN)):
        (folder / name).write_bytes(data)
    for suffix in ("csv", "jsonl", "parquet"):
        done = invoke(home, "classify", folder, "--out", tmp_path / f"a.{suffix}", "--views", "10", "-k", "1")
        assert done.exit_code == 0, done.output
    shown = json.loads(invoke(home, "classify", folder / "own.jpg", "--json", "--views", "10").stdout)["results"][0]
    own = {key: pytest.approx(value, rel=1e-4) for key, value in shown["novelty"].items()}
    lines = [json.loads(line)["novelty"] for line in (tmp_path / "a.jsonl").read_text().splitlines()]
    table = [row["novelty"] for row in pyarrow.parquet.read_table(tmp_path / "a.parquet").to_pylist()]
    rows = list(csv.DictReader((tmp_path / "a.csv").read_text().splitlines()))
    assert lines[0] is table[0] is None
    assert rows[0]["distance"] == rows[0]["percentile"] == rows[0]["unknown"] == ""
    assert lines[2] == own
    assert table[2] == own
    assert [row["unknown"] for row in rows[1:]] == ["true", "false"]
    assert float(rows[2]["distance"]) == own["distance"]
    assert lines[1]["percentile"] == table[1]["percentile"] == float(rows[1]["percentile"]) == 100
