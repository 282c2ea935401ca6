"""`fc7 data`, `fc7 train` on folders without a split, and labels in `fc7 index build` and `fc7 search`."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from PIL import Image

from model_store.errors import DatasetError, Fc7Error
from model_store.training import train as training
from model_store.training.train import Request
from tests.index.bulk.archives import tarred, zipped
from tests.index.bulk.helpers import save_image
from tests.service.cli.helpers import invoke
from tests.support.tiny_model import publish_tiny_model

TRIAL = ("width=0.015625", "dropout=inverted", "initialisation=he", "epochs=1", "batch_size=9", "precision=float32")


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for number in range(20):
        save_image(tmp_path / "photos" / ("cat" if number % 2 else "dog") / f"{number}.png", number)
    return tmp_path / "photos"


def rows(file: Path) -> list[dict[str, str]]:
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_split_writes_a_table_and_copies_nothing(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "copy.png").write_bytes((photos / "cat" / "1.png").read_bytes())
    before = sorted(tmp_path.rglob("*"))
    done = invoke(tmp_path / "home", "data", "split", photos, tmp_path / "split.csv", "--val-share", "0.3")
    assert done.exit_code == 0, done.output
    found = rows(tmp_path / "split.csv")
    assert {row["split"] for row in found if row["path"] in ("photos/cat/1.png", "photos/cat/copy.png")} in (
        {"train"},
        {"val"},
    )
    assert len(found) == 21
    assert sum(row["split"] == "val" for row in found) == 6
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "split.csv"])
    again = invoke(tmp_path / "home", "data", "split", photos, tmp_path / "split.csv")
    assert "already exists" in str(again.exception)
    assert "2 near-identical pictures in 1 group stay together" in done.output


def test_split_keeps_an_existing_split_and_says_so(photos: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    assert "is split already" not in invoke(home, "data", "split", photos, tmp_path / "a.csv").output
    done = invoke(home, "data", "split", tmp_path / "a.csv", tmp_path / "b.jsonl", "--seed", "1", "--val-share", ".5")
    assert f"{tmp_path}/a.csv is split already. Its split was kept" in " ".join(done.output.split())
    kept = [json.loads(line) for line in (tmp_path / "b.jsonl").read_text().splitlines()]
    assert kept == rows(tmp_path / "a.csv")


@pytest.mark.usefixtures("photos")
def test_paths_with_a_tilde_and_spaces(tmp_path: Path) -> None:
    home, words = tmp_path / "home", ("data", "split", "~/photos", "~/my split.csv")
    done = invoke(home, *words, HOME=str(tmp_path))
    assert done.exit_code == 0, done.output
    assert len(rows(tmp_path / "my split.csv")) == 20
    assert "fc7 train '" in done.stderr
    assert invoke(home, "data", "check", "~/my split.csv", "--html", "~/r.html", HOME=str(tmp_path)).exit_code == 0
    assert (tmp_path / "r.html").is_file()
    done = invoke(home, "data", "prepare", "~/my split.csv", "~/my shards", HOME=str(tmp_path))
    assert f"fc7 data verify '{tmp_path}/my shards', then" in " ".join(done.stderr.split())
    assert invoke(home, "data", "verify", "~/my shards", HOME=str(tmp_path)).exit_code == 0


def test_the_limits_of_decoding_are_those_of_serving(photos: Path, tmp_path: Path) -> None:
    save_image(photos / "cat" / "large.png", 50)
    Image.open(photos / "cat" / "large.png").resize((400, 400)).save(photos / "cat" / "large.png")
    done = invoke(tmp_path / "home", "data", "split", photos, tmp_path / "a.csv", FC7_MAX_PIXELS="100000")
    assert "large.png: The image has 160,000 pixels, and the limit is 100,000 (FC7_MAX_PIXELS)" in done.output
    assert len(rows(tmp_path / "a.csv")) == 20
    refused = invoke(tmp_path / "home", "data", "split", photos, tmp_path / "b.csv", FC7_MAX_PIXELS="1000")
    assert "None of the 21 images can be read" in str(refused.exception)
    assert "FC7_MAX_PIXELS" in str(refused.exception)


def test_a_run_records_its_split_and_is_evaluated_on_it(photos: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    changes = ["--experiment", *(word for change in TRIAL for word in ("--set", change))]
    done = invoke(home, "train", photos, "--name", "mine", "--device", "cpu", *changes)
    assert done.exit_code == 0, done.output
    [run] = (home / "runs").iterdir()
    val = {row["path"] for row in rows(run / "split.csv") if row["split"] == "val"}
    assert len(val) == 4
    assert all(Path(path).is_file() for path in val)
    save_image(photos / "cat" / "later.png", 99)
    evaluated = json.loads(invoke(home, "evaluate", "mine", "--json").stdout)
    assert evaluated["images_seen"] == 4
    assert json.loads(invoke(home, "evaluate", "mine", "--json", "--split", "train").stdout)["images_seen"] == 16
    everything = invoke(home, "evaluate", "mine", "--json", "--data", photos, "--split", "all")
    assert json.loads(everything.stdout)["images_seen"] == 21


def test_an_archive_is_unpacked_once(photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    requests: list[Request] = []

    def collect(request: Request, _environment: Mapping[str, str]) -> int:
        requests.append(request)
        return 0

    monkeypatch.setattr(training, "run_command", collect)
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in photos.rglob("*.png")}
    (tmp_path / "set.zip").write_bytes(zipped(files | {"../evil.png": b"x", "__MACOSX/a.png": b"x", "notes.txt": b"x"}))
    for _ in range(2):
        done = invoke(tmp_path / "home", "train", tmp_path / "set.zip", "--name", "a")
        assert done.exit_code == 0, done.output
    first, second = requests
    assert first.data == second.data
    assert first.data is not None
    assert first.data.parent == tmp_path / "home" / "data"
    unpacked = {path.relative_to(first.data).as_posix() for path in first.data.rglob("*") if path.is_file()}
    assert unpacked == set(files)
    assert not (tmp_path / "home" / "data" / "evil.png").exists()
    (tmp_path / "set.zip").write_bytes(b"x")
    assert isinstance(invoke(tmp_path / "home", "train", tmp_path / "set.zip", "--name", "a").exception, Fc7Error)
    assert [path.name for path in (tmp_path / "home" / "data").iterdir()] == [first.data.name]


def test_a_cut_archive_is_named_with_the_fix(photos: Path, tmp_path: Path) -> None:
    files = {path.relative_to(tmp_path).as_posix(): path.read_bytes() for path in photos.rglob("*.png")}
    archive = tmp_path / "set.zip"
    archive.write_bytes(zipped(files)[:-200])
    error = invoke(tmp_path / "home", "data", "split", archive, tmp_path / "split.csv").exception
    assert isinstance(error, DatasetError)
    assert f"The archive {archive} is a zip file without the directory" in str(error)
    assert "Copy it again" in str(error)


def test_an_archive_of_images_and_a_table_is_split(photos: Path, tmp_path: Path) -> None:
    files = {f"set/images/{path.name}": path.read_bytes() for path in photos.rglob("*.png")}
    table = "".join(f"images/{path.name};{path.parent.name}\r\n" for path in photos.rglob("*.png"))
    files["set/labels.csv"] = f"sep=;\r\npath;label\r\n{table}".encode("utf-16")
    (tmp_path / "set.tar").write_bytes(tarred(files))
    done = invoke(tmp_path / "home", "data", "split", tmp_path / "set.tar", tmp_path / "split.csv")
    assert done.exit_code == 0, done.output
    assert {(row["label"], row["split"]) for row in rows(tmp_path / "split.csv")} == {
        (label, split) for label in ("cat", "dog") for split in ("train", "val")
    }
    (tmp_path / "none.zip").write_bytes(zipped({"notes.txt": b"x"}))
    error = invoke(tmp_path / "home", "data", "split", tmp_path / "none.zip", tmp_path / "other.csv").exception
    assert f"{tmp_path}/none.zip contains no images that can be used. It must contain class folders" in str(error)


def test_split_refuses_a_class_whose_pictures_are_all_broken(photos: Path, tmp_path: Path) -> None:
    (photos / "cow").mkdir()
    (photos / "cow" / "1.png").touch()
    error = invoke(tmp_path / "home", "data", "split", photos, tmp_path / "split.csv").exception
    assert isinstance(error, DatasetError)
    assert f"None of the 1 images of the class 'cow' in {photos / 'cow'} can be read" in str(error)
    assert not (tmp_path / "split.csv").exists()


def test_check_prints_json_and_writes_a_page(photos: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    publish_tiny_model(home)
    (photos / "dog" / "broken.png").write_bytes(b"x")
    (photos / "dog" / "same.png").write_bytes((photos / "cat" / "1.png").read_bytes())
    done = invoke(home, "data", "check", photos, "--html", tmp_path / "report.html", "--json", "--model", "tiny")
    assert done.exit_code == 0, done.output
    report = json.loads(done.stdout)
    assert report["features"] == "fc7 of tiny:1"
    assert report["images"] == 21
    assert [group["conflicts"] for group in report["groups"]] == [True]
    assert (tmp_path / "report.html").read_text().count("data:image/jpeg") >= 2
    table = invoke(home, "data", "check", photos, "--model", "tiny")
    assert "the same picture in two classes" in table.output
    assert "not judged" in table.stdout
    assert "Labels cannot be judged: a classifier on fc7 of tiny:1 agrees" in table.stderr
    assert report["labels_note"] in table.stderr


def test_the_next_step_of_a_check_with_problems_is_not_training(photos: Path, tmp_path: Path) -> None:
    words = ("data", "check", photos, "--html", tmp_path / "report.html")
    assert "Next: fc7 train" in invoke(tmp_path / "home", *words).stderr
    for picture in (photos / "dog").iterdir():
        picture.rename(photos / "cat" / picture.name)
    (photos / "dog").rmdir()
    done = invoke(tmp_path / "home", *words)
    assert "has one class ('cat')" in " ".join(done.stderr.split())
    assert "Next: correct what cannot be used" in done.stderr


def test_what_cannot_be_written_is_refused_before_the_pictures_are_read(photos: Path, tmp_path: Path) -> None:
    (photos / "cat" / "1.png").write_bytes(b"x")
    for name, message in (("split.txt", "must end in .csv, .jsonl or .parquet"), ("no/split.csv", "does not exist")):
        refused = invoke(tmp_path / "home", "data", "split", photos, tmp_path / name)
        assert message in str(refused.exception)
        assert "1.png" not in refused.output
    refused = invoke(tmp_path / "home", "data", "check", photos, "--html", tmp_path / "no" / "report.html")
    assert refused.exit_code == 2
    assert "/nodoesnotexist" in "".join(refused.output.replace("│", "").split())  # the message is wrapped in a box


def test_a_run_with_a_share_resumes_after_its_folder_was_moved(photos: Path, tmp_path: Path) -> None:
    home, share = tmp_path / "home", ("--val-share", "0.3")
    changes = ["--experiment", *(word for change in TRIAL for word in ("--set", change))]
    invoke(home, "train", photos, "--name", "mine", "--device", "cpu", *share, *changes)
    moved = photos.rename(tmp_path / "moved")
    resume = ("train", "--resume", "--name", "mine", "--device", "cpu", "--set", "epochs=2", "--data", moved)
    assert "changed since" in str(invoke(home, *resume).exception)
    done = invoke(home, *resume, *share)
    assert done.exit_code == 0, done.output


def test_prepare_requires_a_split(photos: Path, tmp_path: Path) -> None:
    refused = invoke(tmp_path / "home", "data", "prepare", photos, tmp_path / "shards")
    assert isinstance(refused.exception, DatasetError)
    assert f"fc7 data split {photos} split.csv" in str(refused.exception)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    publish_tiny_model(tmp_path / "home")
    invoke(tmp_path / "home", "models", "activate", "tiny:1")
    return tmp_path / "home"


def keys(home: Path, picture: Path, *words: str) -> list[str]:
    found = invoke(home, "search", picture, "--json", *words)
    assert found.exit_code == 0, found.output
    [result] = json.loads(found.stdout)["results"]
    return [near["key"] for near in result["neighbours"]]


def test_labels_and_metadata_reach_search(home: Path, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("path,year\nphotos/cat/1.png,2020\nnone.png,1\n")
    built = invoke(home, "index", "build", photos, "--metadata", tmp_path / "t.csv", "--json")
    assert built.exit_code == 0, built.output
    assert "1 of the metadata's rows name no file" in built.stderr
    assert keys(home, photos / "dog" / "0.png", "--where", "year>=2019") == ["cat/1.png"]
    found = keys(home, photos / "dog" / "0.png", "--where", "label:cat", "-k", "20", "--model", "tiny:1")
    assert len(found) == 10
    assert all(key.startswith("cat/") for key in found)
    save_image(tmp_path / "more" / "x" / "a.png", 70)
    second = invoke(home, "index", "build", tmp_path / "more", "--no-labels")
    assert "20 other images were in the index before" in second.stderr


@pytest.mark.parametrize("folders", ["pets/", "pets/train/"])
def test_labels_are_those_of_training_if_a_folder_is_around_them(home: Path, tmp_path: Path, folders: str) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "a.png")
    picture = (tmp_path / "a.png").read_bytes()
    files = {f"{folders}cat/a.png": picture, f"{folders}dog/b.png": picture + b" "}
    (tmp_path / "set.zip").write_bytes(zipped(files))
    built = invoke(home, "index", "build", tmp_path / "set.zip")
    assert built.exit_code == 0, built.output
    assert keys(home, tmp_path / "a.png", "--where", "label:cat") == [f"{folders}cat/a.png"]
    assert keys(home, tmp_path / "a.png", "--where", "label:dog") == [f"{folders}dog/b.png"]


def test_an_archive_is_indexed_with_its_metadata(home: Path, tmp_path: Path) -> None:
    Image.new("RGB", (64, 64), (1, 2, 3)).save(tmp_path / "a.png")
    rows = b'{"path": "cat/a.png", "year": 2020}\n'
    picture = (tmp_path / "a.png").read_bytes()
    files = {"cat/a.png": picture, "dog/b.png": picture + b" ", "metadata.jsonl": rows}
    files |= {"dog/metadata.jsonl": b'{"path": "b.png", "year": 2021}\n', "__MACOSX/metadata.jsonl": b"x"}
    (tmp_path / "set.tar").write_bytes(tarred(files))
    built = invoke(home, "index", "build", tmp_path / "set.tar", "--json")
    assert built.exit_code == 0, built.output
    assert json.loads(built.stdout)["skipped"] == []
    assert keys(home, tmp_path / "a.png", "--where", "year:2021") == ["dog/b.png"]
    assert keys(home, tmp_path / "a.png", "--where", "year:2020", "--where", "label:cat") == ["cat/a.png"]
