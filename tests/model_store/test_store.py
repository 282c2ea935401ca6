"""Publishing, activating and removing versions, checked from another process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from model_store.artifact import Artifact
from model_store.errors import (
    ArtifactCorruptError,
    ArtifactFormatError,
    ModelInUseError,
    ModelNameError,
    ModelNotFoundError,
    NoActiveModelError,
    NoPreviousModelError,
    PublishError,
)
from model_store.store import ModelRef, ModelStore, parse_reference
from tests.support.tiny_model import publish_tiny_model, tiny_draft, write_tiny_graph


def references(home: Path) -> list[str]:
    """Return the versions that another process finds and verifies."""
    return [Artifact.open(artifact.path).id for artifact in ModelStore(home).list()]


def hidden(home: Path) -> list[str]:
    return sorted(path.name for path in home.rglob(".*") if path.is_dir())


def publish_after(store: ModelStore, change: Callable[[Path], None]) -> Artifact:
    """Stage a tiny version, apply `change`, and publish it."""
    with store.staging("tiny") as staged:
        write_tiny_graph(staged)
        change(staged)
        return store.publish(staged, tiny_draft())


def fill(disk: Path) -> None:
    with suppress(OSError), (disk / "filler").open("wb", buffering=0) as filler:
        while True:
            filler.write(bytes(4096))


def test_versions_are_numbered_per_name_and_the_newest_is_the_default(tmp_path: Path) -> None:
    for name in ("b", "a", "b"):
        publish_tiny_model(tmp_path, name)
    store = ModelStore(tmp_path)
    assert references(tmp_path) == ["a:1", "b:1", "b:2"]
    assert store.get("b").version == store.resolve("b").version == 2
    assert store.resolve("b:1").path == tmp_path / "models" / "b" / "1"


def test_published_version_is_complete_with_its_report(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with store.staging("solar") as staged:
        assert staged.name.startswith(".")
        write_tiny_graph(staged)
        (staged / "report").mkdir()
        (staged / "report" / "curves.svg").write_text("<svg/>")
        artifact = store.publish(staged, tiny_draft("solar"))
    assert not staged.exists()
    assert hidden(tmp_path) == []
    assert "report/curves.svg" in artifact.manifest.files
    assert artifact.verified
    assert artifact.path == tmp_path / "models" / "solar" / "1"
    (artifact.path / "report" / "curves.svg").write_text("other")
    with pytest.raises(ArtifactCorruptError, match=r"curves\.svg"):
        store.get("solar")


def test_failure_before_publishing_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail(_staged: Path) -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        publish_after(ModelStore(tmp_path), fail)
    assert hidden(tmp_path) == []
    assert references(tmp_path) == []


def test_version_without_weights_or_with_links_is_rejected(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(PublishError, match=r"weights\.bin"):
        publish_after(store, lambda staged: (staged / "weights.bin").unlink())
    with pytest.raises(PublishError, match="passwd"):
        publish_after(store, lambda staged: (staged / "passwd").symlink_to("/etc/passwd"))
    assert references(tmp_path) == []


def test_concurrent_publishers_get_different_version_numbers(tmp_path: Path) -> None:
    program = (
        "import sys; from pathlib import Path; from tests.support.tiny_model import publish_tiny_model as publish\n"
    )
    program += "for seed in range(4): publish(Path(sys.argv[1]), seed=seed)"
    others = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path)]) for _ in range(2)]
    with ThreadPoolExecutor(4) as pool:
        versions = [artifact.version for artifact in pool.map(lambda _: publish_tiny_model(tmp_path), range(8))]
    assert [other.wait() for other in others] == [0, 0]
    assert len(set(versions)) == 8
    assert references(tmp_path) == [f"tiny:{version}" for version in range(1, 17)]
    assert hidden(tmp_path) == []


def run_in_child_process(work: Callable[[], None], kill_at: int | None = None, counted: Path | None = None) -> int:
    """Run `work` in a forked process. With `kill_at`, kill it before its n-th operation on a path below `counted`.

    Returns the exit status: 0, or the negative number of the signal.
    """
    child = os.fork()
    if child == 0:
        seen = 0

        def watch(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal seen
            if event.startswith(("os.", "open", "shutil.")) and str(counted) in str(arguments):
                seen += 1
                if seen == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        if kill_at is not None:
            sys.addaudithook(watch)
        try:
            work()
        except BaseException:  # the child must not return into pytest
            os._exit(1)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.parametrize("every", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_kill_at_any_point_leaves_only_complete_versions(tmp_path: Path, every: int) -> None:
    first = publish_tiny_model(tmp_path)
    graph, weights = first.model_path.read_bytes(), first.weights_path.read_bytes()

    def publish_and_activate() -> None:
        store = ModelStore(tmp_path)
        with store.staging("tiny") as staged:
            (staged / "model.onnx").write_bytes(graph)
            (staged / "weights.bin").write_bytes(weights)
            store.publish(staged, tiny_draft())
        store.activate("tiny")

    published, before, operation = 1, ModelRef("tiny", 1), 1
    while run_in_child_process(publish_and_activate, kill_at=operation, counted=tmp_path) == -signal.SIGKILL:
        found = references(tmp_path)
        assert len(found) in (published, published + 1), f"killed at operation {operation}"
        published = len(found)
        active = ModelStore(tmp_path).active()
        assert active is not None
        assert active.active in (before, ModelRef("tiny", published))
        before = active.active
        operation += every
    assert operation > 20
    assert references(tmp_path) == [f"tiny:{version}" for version in range(1, published + 2)]
    assert hidden(tmp_path) == []


def test_leftovers_of_a_dead_publisher_are_removed_and_those_of_a_live_one_kept(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    dead = tmp_path / "models" / ".staging-tiny-dead"
    with store.staging("tiny") as living:
        (living / "model.onnx").write_bytes(b"half a graph")
        dead.mkdir()
        publish_tiny_model(tmp_path)
        assert living.exists()
        assert dead.exists()
    publish_tiny_model(tmp_path)
    assert not dead.exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real file system of 4 MiB. Skips the test if this user cannot mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", place], capture_output=True, check=False)
    if mount.returncode:
        pytest.skip("no right to mount a file system")
    yield place
    subprocess.run(["umount", place], check=True)


def test_full_disk_while_writing_leaves_nothing_and_is_reported(small_disk: Path) -> None:
    (small_disk / "filler").write_bytes(bytes(3 << 20))
    with pytest.raises(PublishError, match=rf"{small_disk}.*No space left") as caught:
        publish_tiny_model(small_disk)
    assert isinstance(caught.value.__cause__, OSError)
    assert references(small_disk) == []
    assert hidden(small_disk) == []
    (small_disk / "filler").unlink()
    assert publish_tiny_model(small_disk).version == 1


def test_full_disk_at_the_manifest_leaves_nothing_and_is_reported(small_disk: Path) -> None:
    store = ModelStore(small_disk)
    with pytest.raises(PublishError, match=rf"{small_disk}.*No space left"):
        publish_after(store, lambda _staged: fill(small_disk))
    assert references(small_disk) == []
    assert hidden(small_disk) == []


def test_exceeding_the_file_size_limit_raises_publish_error(tmp_path: Path) -> None:
    program = """
import resource, sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from model_store.errors import PublishError
from tests.support.tiny_model import publish_tiny_model
resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, 1_000_000))
try:
    publish_tiny_model(Path(sys.argv[1]))
except PublishError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, check=True, text=True)
    assert str(tmp_path) in done.stdout
    assert "File too large" in done.stdout
    assert hidden(tmp_path) == []
    assert references(tmp_path) == []


def test_full_disk_keeps_the_old_version_active(small_disk: Path) -> None:
    publish_tiny_model(small_disk)
    (small_disk / "active.json").unlink()
    store = ModelStore(small_disk)
    fill(small_disk)
    with pytest.raises(PublishError, match=r"active\.json"):
        store.activate("tiny")
    assert store.active() is None
    assert sorted(path.name for path in small_disk.iterdir()) == ["filler", "models"]


def test_activation_records_the_previous_version_for_rollback(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    with pytest.raises(NoActiveModelError, match="No model is published"):
        store.active_artifact()
    for seed in range(3):
        publish_tiny_model(tmp_path, seed=seed, activate=False)
    with pytest.raises(NoActiveModelError, match=r"activate tiny:3\. Published: tiny:1, tiny:2, tiny:3"):
        store.rollback()
    assert store.activate("tiny", 2).id == "tiny:2"
    with pytest.raises(NoPreviousModelError):
        store.rollback()
    store.activate("tiny")
    store.activate("tiny", 3)
    active = ModelStore(tmp_path).active()
    assert active is not None
    assert (str(active.active), str(active.previous)) == ("tiny:3", "tiny:2")
    assert store.rollback().id == "tiny:2"
    assert store.active_artifact().id == "tiny:2"
    assert store.rollback().id == "tiny:3"


def test_modified_version_is_not_activated_and_the_old_one_stays_active(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    tampered = publish_tiny_model(tmp_path, seed=1, activate=False)
    with tampered.weights_path.open("r+b") as file:
        file.seek(1_000_000)
        file.write(b"\x55")
    store = ModelStore(tmp_path)
    with pytest.raises(ArtifactCorruptError) as caught:
        store.activate("tiny", 2)
    assert caught.value.path == tampered.weights_path
    assert store.active_artifact().id == "tiny:1"


def test_broken_active_file_is_reported_and_repaired_by_activation(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    store = ModelStore(tmp_path)
    for text in (
        "",
        "{}",
        "[]",
        '{"active": {"name": "../x", "version": 1}, "previous": null}',
        '{"active": 1, "previous": 2}',
    ):
        (tmp_path / "active.json").write_text(text)
        with pytest.raises(ArtifactFormatError, match=r"active\.json.*fc7 models activate"):
            store.active()
    store.activate("tiny")
    assert store.active_artifact().id == "tiny:1"


def test_the_error_for_an_unknown_model_lists_the_known_ones(tmp_path: Path) -> None:
    store = ModelStore(tmp_path / "nowhere")
    with pytest.raises(ModelNotFoundError, match="solar does not exist: no model is published yet"):
        store.get("solar")
    with pytest.raises(ModelNotFoundError):
        store.activate("solar", 1)
    assert store.list() == []
    assert store.active() is None
    assert not (tmp_path / "nowhere").exists()
    publish_tiny_model(tmp_path)
    for name, version in (("solar", None), ("tiny", 2), ("tiny", 0)):
        with pytest.raises(ModelNotFoundError, match="Published: tiny:1"):
            ModelStore(tmp_path).get(name, version)


def test_references_are_parsed_strictly() -> None:
    assert parse_reference("solar") == ("solar", None)
    assert parse_reference("so.lar-2:17") == ("so.lar-2", 17)
    for text in ("solar:", "solar:0", "solar:01", "solar:-1", "solar:x", ":1", "../x", "solar:1:2", "solar:²"):
        with pytest.raises(ModelNameError):
            parse_reference(text)


def test_misplaced_and_broken_versions_are_reported_and_hide_no_other_version(tmp_path: Path) -> None:
    for _ in range(3):
        publish_tiny_model(tmp_path, activate=False)
    models = tmp_path / "models" / "tiny"
    (models / "2").rename(models / "7")
    (models / "3" / "manifest.json").write_text("{")
    (models / "notes").mkdir()
    artifacts, errors = ModelStore(tmp_path).scan()
    assert [artifact.id for artifact in artifacts] == ["tiny:1"]
    assert [str(error.args[0].parent.name) for error in errors] == ["3", "7"]
    with pytest.raises(ArtifactFormatError, match="manifest of tiny:2, but it is in the folder of tiny:7"):
        ModelStore(tmp_path).get("tiny")


def test_removed_version_is_gone_and_its_number_is_not_reused(tmp_path: Path) -> None:
    for _ in range(3):
        publish_tiny_model(tmp_path)
    store = ModelStore(tmp_path)
    with pytest.raises(ModelInUseError, match="tiny:3 is the active version"):
        store.remove("tiny", 3)
    store.remove("tiny", 2)
    assert references(tmp_path) == ["tiny:1", "tiny:3"]
    with pytest.raises(NoPreviousModelError):
        store.rollback()
    with pytest.raises(ModelNotFoundError, match="Published: tiny:1, tiny:3"):
        store.remove("tiny", 2)
    store.activate("tiny", 1)
    store.remove("tiny", 3)
    assert publish_tiny_model(tmp_path).version == 4
    assert hidden(tmp_path) == []


def test_killed_removal_leaves_the_version_complete_or_gone(tmp_path: Path) -> None:
    version, kills = 0, 0
    while True:
        publish_tiny_model(tmp_path, activate=False)
        version += 1
        remove = partial(ModelStore(tmp_path).remove, "tiny", version)
        status = run_in_child_process(remove, kill_at=kills + 1, counted=tmp_path)
        found = references(tmp_path)
        assert found in ([], [f"tiny:{version}"])
        if status == 0:
            break
        kills += 1
        if found:
            ModelStore(tmp_path).remove("tiny", version)
    assert kills > 4
    publish_tiny_model(tmp_path)
    assert hidden(tmp_path) == []
