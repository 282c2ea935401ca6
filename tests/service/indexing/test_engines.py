"""An index in int8 that another engine built: its vectors are not compared with those of the engine that serves."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import Result

from index.errors import IndexModelError
from model_store.errors import ModelInUseError
from model_store.runtime.runner import Outputs, Runner
from model_store.store import ModelStore
from service.indexing import reembedder
from tests.service.cli.helpers import invoke
from tests.support.server import ThreadServer, thread_server, wait_until
from tests.support.training.int8_model import publish_int8_model

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning:onnxruntime")
ONNXRUNTIME, OPENVINO = "small:2 (int8)", "small:2 (int8, OpenVINO)"
_LIMIT = 0.01  # of the distance to the nearest other image


class WaitingRunner(Runner):
    """A real runner whose migration waits for `resumed`."""

    resumed = threading.Event()

    def run(self, pixels: NDArray[np.uint8], *, all_cores: bool = True) -> Outputs:
        if threading.current_thread().name == "fc7-migrate":
            assert self.resumed.wait(60)
        return super().run(pixels, all_cores=all_cores)


@pytest.fixture(autouse=True)
def waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reembedder, "QUIET_S", 0.0)
    monkeypatch.setattr(WaitingRunner, "resumed", threading.Event())


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    publish_int8_model(folder / "home", folder / "data")
    return folder


@pytest.fixture
def home(published: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(published / "home", tmp_path / "home"))


def run_cli(home: Path, *arguments: str | Path, engine: str, precision: str = "int8") -> Result:
    """Run a command that uses this engine."""
    return invoke(home, *arguments, FC7_DEVICE="cpu", FC7_ENGINE=engine, FC7_PRECISION=precision)


def build(home: Path, data: Path, *options: str, engine: str, precision: str = "int8") -> None:
    result = run_cli(home, "index", "build", data, *options, engine=engine, precision=precision)
    assert result.exit_code == 0, result.output


def images(data: Path) -> Sequence[Path]:
    return sorted(data.rglob("*.png"))


def relative_distances(server: ThreadServer, data: Path) -> Iterator[float]:
    """Search each file, which is found first; yield its distance, as a share of that of the nearest other image."""
    for path in images(data):
        yield _relative_distance(server, path.relative_to(data).as_posix(), path.read_bytes())


def relative_distances_of_pictures(server: ThreadServer, data: Path) -> Iterator[float]:
    """The same for the stored pictures, which the migration embeds. As JPEG files, they differ from the original."""
    for path in images(data):
        key = path.relative_to(data).as_posix()
        yield _relative_distance(server, key, server.client.get(f"/v1/images/{key}/thumbnail").content)


def _relative_distance(server: ThreadServer, key: str, content: bytes) -> float:
    answer = server.client.post("/v1/search", params={"k": "2"}, content=content)
    assert answer.status_code == 200, answer.text
    first, second = answer.json()["results"][0]["neighbours"]
    assert first["key"] == key
    return float(first["distance"] / second["distance"])


def searched(server: ThreadServer) -> str:
    """Return the model whose vectors are searched."""
    return str(server.client.get("/v1/index").json()["model"])


@pytest.mark.parametrize(
    ("engine", "precision", "built_by"), [("onnxruntime", "int8", ONNXRUNTIME), ("openvino", "fp32", "small:2")]
)
def test_vectors_of_another_engine_or_precision_are_searched_until_the_index_is_migrated(
    home: Path, published: Path, engine: str, precision: str, built_by: str
) -> None:
    data = published / "data"
    build(home, data, engine=engine, precision=precision)
    served: dict[str, Any] = {"device": "cpu", "engine": "openvino", "precision": "int8"}
    with thread_server(home, make_runner=WaitingRunner, **served) as server:
        assert searched(server) == built_by
        assert server.client.get("/v1/index").json()["migration"]["model"] == OPENVINO
        assert max(relative_distances(server, data)) < _LIMIT
        WaitingRunner.resumed.set()
        wait_until(lambda: searched(server) == OPENVINO)
        assert max(relative_distances_of_pictures(server, data)) < _LIMIT
        assert max(relative_distances(server, data)) < 1
        assert server.client.get("/readyz").json()["notes"] == []
    with thread_server(home, **served) as server:
        assert server.client.get("/v1/index").json()["migration"] is None
        assert max(relative_distances_of_pictures(server, data)) < _LIMIT


def test_an_index_of_the_same_engine_is_not_migrated(home: Path, published: Path) -> None:
    build(home, published / "data", engine="onnxruntime")
    with thread_server(home, device="cpu", engine="onnxruntime", precision="int8") as server:
        info = server.client.get("/v1/index").json()
        assert (info["model"], info["migration"], len(info["spaces"])) == (ONNXRUNTIME, None, 1)
        assert max(relative_distances(server, published / "data")) < _LIMIT


def test_commands_do_not_compare_the_vectors_of_two_engines(home: Path, published: Path) -> None:
    data = published / "data"
    image = images(data)[0]
    build(home, data, engine="openvino")
    for command in (["search", image], ["index", "build", data], ["codes", "train"], ["head", "fit"]):
        result = run_cli(home, *command, engine="onnxruntime")
        assert isinstance(result.exception, IndexModelError), (command, result.exception)
        assert OPENVINO in str(result.exception)
    assert run_cli(home, "search", image, engine="openvino").exit_code == 0


def test_a_rebuild_embeds_the_original_files_with_the_new_engine(home: Path, published: Path) -> None:
    data = published / "data"
    build(home, data, engine="onnxruntime")
    build(home, data, "--rebuild", engine="openvino")
    with thread_server(home, device="cpu", engine="openvino", precision="int8") as server:
        assert searched(server) == OPENVINO
        assert max(relative_distances(server, data)) < _LIMIT


def test_the_version_that_the_index_needs_is_not_removed(home: Path, published: Path) -> None:
    build(home, published / "data", engine="openvino")
    ModelStore(home).activate("small", 1)
    result = run_cli(home, "models", "remove", "small:2", engine="onnxruntime", precision="fp32")
    assert isinstance(result.exception, ModelInUseError)
