"""The commands of docs/imagenet.md, from tar files with 1,000 classes to tables 1 and 2 and figures 3 and 4.

The miniature has one image per class, and the net 1/64 of the width. It cannot be exported, so the commands that
follow use the run.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path
from typing import Any

import pytest

from model_store.decoder.decoder import Decoder
from model_store.training.data.shards import read_folder, read_images
from model_store.training.runs.run import find_run
from tests.service.cli.helpers import invoke
from tests.support.training.ilsvrc import CLASSES, Content, thousand_classes, write_ilsvrc

PAGE = Path(__file__).parents[4] / "docs" / "imagenet.md"
TABLE_1 = "Table 1 (ILSVRC 2010)"
TABLE_2 = "Table 2 and figures 3 and 4 (ILSVRC 2012)"
AVERAGE = "The average of five nets"
# Options that make a command faster, by its name.
FASTER = {
    "train": ("--experiment", "--set", "width=0.015625", "--set", "epochs=1", "--device", "cpu"),
    "report": ("--gallery", "60"),
}
VAL, TEST = 12, 6
CONTENT = thousand_classes(train=1, val=VAL, test=TEST)


def page_commands(title: str) -> list[list[str]]:
    """Return the words of the commands below a heading of the page, without `fc7`."""
    section = PAGE.read_text(encoding="utf-8").partition(f"# {title}\n")[2].partition("\n#")[0]
    return [shlex.split(line)[1:] for line in section.splitlines() if line.startswith("    fc7 ")]


def run_section(title: str, home: Path) -> dict[str, str]:
    """Run the commands below a heading in the current folder. Return what each printed, by its words."""
    printed = {}
    for line in page_commands(title):
        if line[0] == "export":
            continue
        words = [word.removesuffix(":1") for word in line]
        target = None
        if ">" in words:
            words, target = words[: words.index(">")], words[-1]
        done = invoke(home, *words, *FASTER.get(words[0], ()))
        assert done.exit_code == 0, (words, done.output, done.exception)
        if target is not None:
            Path(target).write_text(done.stdout, encoding="utf-8")
        printed[" ".join(words)] = done.output
    return printed


def table_rows(file: Path) -> dict[str, list[list[str]]]:
    """Return the cells of each row of tables.md by the title of the table."""
    tables: dict[str, list[list[str]]] = {}
    for part in file.read_text(encoding="utf-8").split("### ")[1:]:
        title, *lines = part.splitlines()
        rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("| ")]
        tables[title] = rows[1:]
    return tables


def assert_measured(rows: list[list[str]], name: str, images: str) -> None:
    """Check the two rows that were measured on `images`."""
    assert [row[0] for row in rows] == [f"{name} (1 view)", f"{name} (10 views)"]
    assert {row[1] for row in rows} == {"measured by fc7"}
    assert {row[-1] for row in rows} == {images}
    assert all(0 < float(cell.removesuffix(" %")) <= 100 for row in rows for cell in row[2:4])


def assert_labels_match_colors(shards: Path, content: Content) -> None:
    """Check that each image has the class whose color it has: the ids of the kit and its ground truths are applied."""
    words = {number % CLASSES: text for number, _, text in content.synsets}
    folder = read_folder(shards)
    assert folder.classes == tuple(f"class {at}, of many" for at in range(CLASSES))  # in the order of WordNet ids
    with Decoder() as decoder:
        for split in folder.splits:
            for image in read_images(folder, split)[:100]:
                digits = ((decoder.prepare(image.read()).mean((0, 1)) - 30) / 20).round().astype(int)
                assert words[int(digits @ [100, 10, 1])] == image.label


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.slow
def test_ilsvrc_2012_from_tar_files_to_table_2(folder: Path) -> None:
    write_ilsvrc(folder / "imagenet", content=CONTENT)
    home = folder / "home"
    printed = run_section(TABLE_2, home)
    assert f"1,000 classes; images: 1,000 of train, {VAL} of val" in printed["data ilsvrc imagenet"].replace("\n", " ")
    assert_labels_match_colors(folder / "shards", CONTENT)
    run = find_run(home, "alexnet")
    info: dict[str, Any] = json.loads((run / "run.json").read_text())
    assert (info["recipe"]["name"], info["recipe"]["batch_size"], info["train_images"]) == ("paper", 128, CLASSES)
    # Of many classes, only the weakest with images are listed.
    assert f"the {VAL} of 1,000 classes with the lowest recall" in printed["evaluate alexnet"]
    assert printed["evaluate alexnet"].count("of many") == VAL
    evaluation = json.loads((folder / "ten-views.json").read_text())
    assert (evaluation["views"], evaluation["images_seen"], len(evaluation["per_class"])) == (10, VAL, CLASSES)
    table_1, table_2 = table_rows(folder / "report" / "tables.md").values()
    assert [row[0] for row in table_1] == ["Sparse coding [2]", "SIFT + FVs [24]", "CNN"]
    assert [row[0] for row in table_2[:5]] == ["SIFT + FVs [7]", "1 CNN", "5 CNNs", "1 CNN\\*", "7 CNNs\\*"]
    assert_measured(table_2[5:], run.name, f"{VAL} images of shards")
    assert table_2[6][2:4] == [f"{100 * evaluation[error]:.1f} %" for error in ("top1_error", "top5_error")]
    files = {"figure3.png", "figure4-left.png", "figure4-right.png", "tables.md", "report.json"}
    assert {path.name for path in (folder / "report").iterdir()} == files


@pytest.mark.slow
def test_ilsvrc_2010_from_tar_files_to_table_1(folder: Path) -> None:
    write_ilsvrc(folder / "imagenet-2010", 2010, content=CONTENT)
    run_section(TABLE_1, folder / "home")
    assert_labels_match_colors(folder / "shards-2010", CONTENT)
    table_1, table_2 = table_rows(folder / "report-2010" / "tables.md").values()
    assert [row[0] for row in table_1[:3]] == ["Sparse coding [2]", "SIFT + FVs [24]", "CNN"]
    name = find_run(folder / "home", "alexnet-2010").name
    assert_measured(table_1[3:], name, f"{TEST} images of shards-2010")
    assert len(table_2) == 5


@pytest.mark.slow
def test_several_nets_are_averaged_in_a_row_of_table_2(folder: Path) -> None:
    write_ilsvrc(folder / "imagenet", content=CONTENT)
    run_section(TABLE_2, folder / "home")
    run_section(AVERAGE, folder / "home")
    _, table_2 = table_rows(folder / "report" / "tables.md").values()
    names = [find_run(folder / "home", name).name for name in ("alexnet", "alexnet-1")]
    assert [row[0] for row in table_2[5:]] == [
        f"{names[0]} (1 view)",
        f"{names[0]} (10 views)",
        f"{' + '.join(names)} (10 views)",
    ]
