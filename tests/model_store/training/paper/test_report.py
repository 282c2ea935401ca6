"""`fc7 report`: its numbers are recomputed with NumPy from the image files."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from typer.testing import CliRunner

from model_store.errors import DatasetError
from model_store.image import prepare, views
from model_store.store import ModelStore
from model_store.training.data.image_file import ImageFile
from model_store.training.evaluate import TorchPredictor
from model_store.training.export.publish import export_run
from model_store.training.paper.report import alternate_classes
from model_store.training.runs.run import load_run
from service.cli.main import app
from tests.support.training.run_folder import CLASSES, write_pictures, write_run

FILES = ("figure3.png", "figure4-left.png", "figure4-right.png", "tables.md", "report.json")


def test_the_order_of_images_alternates_classes_and_depends_on_the_seed() -> None:
    files = [ImageFile(f"{label}{number}", label, Path(f"{label}{number}")) for label in "abc" for number in range(5)]
    chosen = alternate_classes(files, 0)
    assert sorted(chosen, key=str) == files
    for start in range(0, 15, 3):
        assert {file.label for file in chosen[start : start + 3]} == set("abc")
    assert alternate_classes(files, 0) == chosen != alternate_classes(files, 1)


def test_fc7_report_gives_the_same_results_for_a_run_and_its_version(tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_pictures(data, "val", images=3)
    write_pictures(data, "train", images=4)
    (data / "train" / "red" / "cut.png").write_bytes(b"no picture")
    run = load_run(write_run(tmp_path, data))
    export_run(run, ModelStore(tmp_path))
    cli, options = CliRunner(), ["--data", str(data), "--home", str(tmp_path)]
    evaluated = cli.invoke(app, ["evaluate", "small", "small:1", "--json", *options])
    assert evaluated.exit_code == 0
    (tmp_path / "both.json").write_text(evaluated.stdout)
    numbers = {}
    for model in ("small", "small:1"):
        out = tmp_path / f"out-{model}"
        more = ["--out", str(out), "--evaluation", str(tmp_path / "both.json"), "--views", "10"]
        done = cli.invoke(app, ["report", model, *more, *options])
        assert done.exit_code == 0, done.output
        assert sorted(path.name for path in out.iterdir()) == sorted(FILES)
        for name in FILES[:3]:
            with Image.open(out / name) as figure:
                assert min(figure.size) > 300
        numbers[model] = json.loads((out / "report.json").read_text())
    assert numbers["small"]["figure3"] == numbers["small:1"]["figure3"]
    assert numbers["small"]["figure3"]["kernels"] == 8
    assert [row["model"].split(" ")[-2:] for row in list(numbers["small"]["tables"].values())[2]] == [
        ["(1", "view)"],
        ["(10", "views)"],
        ["(1", "view)"],
    ]
    # The neighbors, computed again from the files.
    torch = TorchPredictor("run", CLASSES, run.network, run.statistics.mean)

    def fc7(path: Path) -> NDArray[np.float32]:
        return torch.both(views(prepare(path.read_bytes())))[1].reshape(4096)

    answers, rows = numbers["small"]["figure4"]["answers"], numbers["small"]["figure4"]["neighbors"]
    assert (len(answers), len(rows), numbers["small"]["figure4"]["gallery"]) == (8, 5, 12)
    gallery = {str(path): fc7(path) for path in sorted(data.glob("train/*/[0-9].png"))}
    held_out = [fc7(path) for path in sorted(data.glob("val/*/*.png"))]
    for row, other in zip(rows, numbers["small:1"]["figure4"]["neighbors"], strict=True):
        distances = [entry["distance"] for entry in row]
        candidates = [sorted(np.linalg.norm(query - vector) for vector in gallery.values())[:6] for query in held_out]
        assert min(np.abs(np.array(distances) - np.array(each)).max() for each in candidates) < 1e-3
        assert [entry["file"] for entry in row] == [entry["file"] for entry in other]


def test_fc7_report_requires_images_and_valid_evaluations(tmp_path: Path) -> None:
    write_pictures(tmp_path / "data", images=2)
    export_run(load_run(write_run(tmp_path, tmp_path / "data")), ModelStore(tmp_path))
    cli = CliRunner()
    result = cli.invoke(app, ["report", "small:1", "--out", str(tmp_path / "o"), "--home", str(tmp_path)])
    assert isinstance(result.exception, DatasetError)
    assert "no split 'train'" in str(result.exception)
    (tmp_path / "no.json").write_text("{}")
    more = ["--data", str(tmp_path / "data"), "--train-split", "val", "--evaluation", str(tmp_path / "no.json")]
    result = cli.invoke(app, ["report", "small", *more, "--out", str(tmp_path / "o"), "--home", str(tmp_path)])
    assert isinstance(result.exception, DatasetError)
    assert "fc7 evaluate --json" in str(result.exception)
    assert not (tmp_path / "o").exists()
