"""`fc7 index build --ray` on a real Ray cluster; slow tests kill its workers. All tests here share one cluster."""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import pytest

from index.bulk.folder import build_index
from index.errors import IndexUnavailableError
from index.factory import read_stats
from index.milvus.index import MilvusImageIndex
from index.records import IndexOptions, MilvusAddress
from model_store.runtime.runner import Runner
from model_store.store import ModelStore
from tests.index.bulk.helpers import open_index, save_image
from tests.support.milvus import milvus_server
from tests.support.tiny_model import publish_tiny_model

ROOT = Path(__file__).parents[4]
COMMAND = [sys.executable, "-c", "from service.cli import main; main()", "index", "build"]
# A worker of this cluster dies when it opens POISON, and cannot import fc7 when WITHOUT_FC7 is set.
POISON = "poison.png"
WITHOUT_FC7 = "TEST_WITHOUT_FC7"
CLUSTER = f"""
import os, sys, tempfile
with tempfile.TemporaryDirectory(prefix="fc7-ray-", ignore_cleanup_errors=True) as folder:
    with open(folder + "/sitecustomize.py", "w") as file:
        file.write('''import os, sys
sys.addaudithook(lambda event, args: os._exit(9) if event == "open" and str(args[0]).endswith("{POISON}") else None)
if "{WITHOUT_FC7}" in os.environ:
    sys.modules["index"] = None
''')
    os.environ["PYTHONPATH"] = folder + os.pathsep + {str(ROOT)!r}
    import ray
    ray.init(address="local", num_cpus=2, include_dashboard=False, object_store_memory=100_000_000, _temp_dir=folder,
             log_to_driver=False, logging_level="CRITICAL")
    print(ray.get_runtime_context().gcs_address, flush=True)
    sys.stdin.read()
    ray.shutdown()
"""


@dataclass(frozen=True)
class Ray:
    """A running cluster: its address, the environment to join it, and a mark in the environment of its workers."""

    address: str
    environment: Mapping[str, str]
    mark: str

    def workers(self) -> list[int]:
        """Return the ids of the processes that run an actor of a build."""
        found = []
        for process in Path("/proc").iterdir():
            try:
                if (process / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                    found += [int(process.name)] * (self.mark.encode() in (process / "environ").read_bytes())
            except OSError:
                continue
        return found


@pytest.fixture(scope="module")
def ray() -> Iterator[Ray]:
    mark = secrets.token_hex(16)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("FC7_", "RAY_"))}
    environment |= {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32), "RAY_USAGE_STATS_ENABLED": "0"}
    with subprocess.Popen(
        [sys.executable, "-c", CLUSTER],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment | {"TEST_MARK": mark},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Ray(process.stdout.readline().strip(), environment, mark)
        process.stdin.close()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    publish_tiny_model(tmp_path / "home")
    return tmp_path / "home"


def start(ray: Ray, home: Path, *arguments: str | Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*COMMAND, *arguments, "--ray", ray.address, "--json"],
        env={**ray.environment, "FC7_HOME": str(home), **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    with process:
        out, errors = process.communicate(timeout=100)
    return process.returncode, out, errors


def stored(home: Path, runner: Runner) -> dict[str, tuple[str, bytes, bytes]]:
    """Return hash, picture and vector of each key, after checking that every image is listed once."""
    with open_index(home, runner) as index:
        keys = [record.key for record in index.list(10_000).images]
        assert len(set(keys)) == len(keys) == index.stats().vectors
        vectors = index.vectors(keys)
        return {key: (index.get(key).sha256, index.picture(key), vectors[key].tobytes()) for key in keys}


def stored_without_ray(photos: Path, home: Path) -> dict[str, tuple[str, bytes, bytes]]:
    """Return what a build of one process into a new home stores."""
    with closing(Runner(publish_tiny_model(home))) as runner:
        with open_index(home, runner) as index:
            build_index(photos, index, runner, key_prefix="all/")
        return stored(home, runner)


def test_a_build_stores_what_a_build_without_ray_stores(ray: Ray, home: Path, tmp_path: Path) -> None:
    for n in range(6):
        save_image(tmp_path / "photos" / f"{n % 2}" / f"{n}.png", n)
    (tmp_path / "photos" / "text.jpg").write_text("not an image")
    code, out, errors = finish(start(ray, home, tmp_path / "photos", "--batch-size", "2", "--key-prefix", "all/"))
    assert code == 0, errors
    report = json.loads(out)
    assert (report["seen"], report["added"], report["replaced"], report["unchanged"]) == (7, 6, 0, 0)
    assert [Path(each["image"]).name for each in report["skipped"]] == ["text.jpg"]
    with closing(Runner(ModelStore(home).active_artifact())) as runner:
        assert stored(home, runner) == stored_without_ray(tmp_path / "photos", tmp_path / "alone")


@pytest.mark.slow
def test_killed_worker_loses_and_duplicates_nothing(ray: Ray, home: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for n in range(90):
        save_image(photos / f"{n % 3}" / f"{n}.png", n)
    (photos / "text.jpg").write_text("not an image")
    save_image(photos / ("x" * 120) / ("y" * 100 + ".png"), 1)
    process = start(ray, home, photos.as_uri(), "--batch-size", "1", "--key-prefix", "all/")
    log = home / "index" / "catalog.db-wal"
    deadline = time.monotonic() + 60
    while (
        not (log.exists() and log.stat().st_size > 200_000) and process.poll() is None and time.monotonic() < deadline
    ):
        time.sleep(0.01)
    victim = ray.workers()[0]
    os.kill(victim, signal.SIGKILL)
    assert process.poll() is None
    code, out, errors = finish(process)
    assert code == 0, errors
    report = json.loads(out)
    assert (report["seen"], report["added"], report["replaced"], report["unchanged"]) == (92, 90, 0, 0)
    reasons = {Path(each["image"]).name[:8]: each["reason"] for each in report["skipped"]}
    assert set(reasons) == {"text.jpg", "yyyyyyyy"}
    assert "characters" in reasons["yyyyyyyy"]
    assert "Next: fc7 " in errors
    assert f"/{victim} " not in max(report["workers"], key=lambda worker: report["workers"][worker]["images"])

    with closing(Runner(ModelStore(home).active_artifact())) as runner:
        assert stored(home, runner) == stored_without_ray(photos, tmp_path / "alone")

    (photos / "0" / "0.png").write_bytes((photos / "0" / "3.png").read_bytes())
    code, out, errors = finish(start(ray, home, photos, "--key-prefix", "all/"))
    assert code == 0, errors
    again = json.loads(out)
    assert (again["seen"], again["added"], again["replaced"], again["unchanged"]) == (92, 0, 1, 89)


@pytest.mark.slow
def test_killed_worker_loses_and_duplicates_nothing_on_milvus(ray: Ray, home: Path, tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    for n in range(60):
        save_image(photos / f"{n}.png", n)
    with milvus_server(tmp_path / "milvus") as milvus:
        process = start(ray, home, photos.as_uri(), "--batch-size", "1", FC7_INDEX_URI=milvus.uri)
        deadline = time.monotonic() + 60
        while process.poll() is None and images_on(milvus.uri) < 10 and time.monotonic() < deadline:
            time.sleep(0.2)  # each call opens a connection, which takes a core from the workers
        os.kill(ray.workers()[0], signal.SIGKILL)
        assert process.poll() is None
        code, out, errors = finish(process)
        assert code == 0, errors
        report = json.loads(out)
        assert (report["seen"], report["added"], report["replaced"], report["unchanged"]) == (60, 60, 0, 0)
        assert not (home / "index").exists()
        runner = Runner(publish_tiny_model(tmp_path / "alone"))
        artifact = runner.artifact
        with (
            open_index(tmp_path / "alone", runner) as alone,
            MilvusImageIndex.open(
                MilvusAddress(milvus.uri), IndexOptions(artifact.fingerprint, artifact.id, read_only=True)
            ) as shared,
        ):
            build_index(photos, alone, runner)
            listed = shared.list(1000).images
            assert sorted((r.key, r.sha256) for r in listed) == sorted(
                (r.key, r.sha256) for r in alone.list(1000).images
            )
            for number in (0, 27, 59):
                assert shared.picture(f"{number}.png") == alone.picture(f"{number}.png")
                near, expected = (index.similar(f"{number}.png", 5) for index in (shared, alone))
                assert [each.key for each in near] == [each.key for each in expected]
                assert [each.distance for each in near] == pytest.approx([each.distance for each in expected])
        runner.close()
        code, out, errors = finish(start(ray, home, photos, FC7_INDEX_URI=milvus.uri))
        assert code == 0, errors
        assert json.loads(out)["unchanged"] == 60


def images_on(uri: str) -> int:
    try:
        return read_stats(Path(), MilvusAddress(uri)).images
    except IndexUnavailableError:  # not created yet
        return 0


@pytest.mark.slow
def test_workers_without_fc7_and_a_wrong_token_are_reported_with_a_fix(ray: Ray, home: Path, tmp_path: Path) -> None:
    save_image(tmp_path / "photos" / "1.png", 1)
    workers = {"runtime_env": {"env_vars": {WITHOUT_FC7: "1"}}}
    publish_tiny_model(tmp_path / "other")
    missing = start(ray, home, tmp_path / "photos", RAY_JOB_CONFIG_JSON_ENV_VAR=json.dumps(workers))
    stranger = start(ray, tmp_path / "other", tmp_path / "photos", RAY_AUTH_TOKEN=secrets.token_hex(32))
    code, _, errors = finish(missing)
    assert code == 1
    assert "cannot import fc7 (" in errors
    assert "pip install 'fc7[cpu,ray]'" in errors
    code, _, errors = finish(stranger)
    assert code == 1
    assert "RAY_AUTH_TOKEN" in errors
    assert "Traceback" not in errors


@pytest.mark.slow
def test_image_that_kills_its_workers_is_skipped_and_the_rest_is_indexed(ray: Ray, home: Path, tmp_path: Path) -> None:
    for n in range(40):
        save_image(tmp_path / "photos" / f"{n}.png", n)
    save_image(tmp_path / "photos" / POISON, 99)
    code, out, errors = finish(start(ray, home, tmp_path / "photos", "--batch-size", "2"))
    assert code == 0, errors
    report = json.loads(out)
    assert (report["seen"], report["added"]) == (41, 40)
    assert [Path(each["image"]).name for each in report["skipped"]] == [POISON]
    assert "died" in report["skipped"][0]["reason"]


@pytest.mark.slow
def test_local_ray_leaves_no_processes_when_the_command_is_killed(ray: Ray, home: Path, tmp_path: Path) -> None:
    for n in range(200):
        save_image(tmp_path / "photos" / f"{n}.png", n)
    command = [*COMMAND, str(tmp_path / "photos"), "--ray", "local"]
    mark = secrets.token_hex(16)
    environment = {**ray.environment, "FC7_HOME": str(home), "TEST_MARK": mark, "TMPDIR": "/tmp"}
    log = home / "index" / "catalog.db-wal"
    with subprocess.Popen([*command, "--batch-size", "1"], env=environment, stderr=subprocess.DEVNULL) as process:
        while not (log.exists() and log.stat().st_size > 200_000) and process.poll() is None:
            time.sleep(0.01)
        local = Ray("local", environment, mark)
        assert local.workers()
        process.kill()
    deadline = time.monotonic() + 30
    while local.workers() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert local.workers() == []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=100)
    assert done.returncode == 0, done.stderr
    assert " 0 unchanged" not in done.stderr
    assert "The index has 200 images" in done.stderr
