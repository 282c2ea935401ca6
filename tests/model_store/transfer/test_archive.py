"""Moving a version through an archive, and rejecting invalid archives."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.artifact import Artifact
from model_store.errors import ArtifactCorruptError, ArtifactFormatError, ModelArchiveError
from model_store.store import ModelStore
from model_store.transfer.archive import export_version, import_version
from tests.support.tiny_model import publish_tiny_model

Members = list[tuple[tarfile.TarInfo, bytes]]


@pytest.fixture
def artifact(tmp_path: Path) -> Artifact:
    return publish_tiny_model(tmp_path / "here")


@pytest.fixture
def archive(tmp_path: Path, artifact: Artifact) -> Path:
    export_version(artifact, tmp_path / "tiny.fc7.tar")
    return tmp_path / "tiny.fc7.tar"


def rewrite(archive: Path, change: Callable[[Members], Members]) -> None:
    """Write the archive again with changed members. Their sizes are set to the lengths of their data."""
    with tarfile.open(archive) as tar:
        members = [(member, (tar.extractfile(member) or io.BytesIO()).read()) for member in tar.getmembers()]
    with tarfile.open(archive, "w") as tar:
        for member, data in change(members):
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def extra(
    name: str, data: bytes = b"x", kind: bytes = tarfile.REGTYPE, link: str = ""
) -> tuple[tarfile.TarInfo, bytes]:
    member = tarfile.TarInfo(name)
    member.type, member.linkname = kind, link
    return member, data if kind == tarfile.REGTYPE else b""


def renamed(members: Members, number: int, name: str) -> Members:
    members[number][0].name = name
    return members


def test_exported_version_is_imported_unchanged_as_the_next_version(
    tmp_path: Path, artifact: Artifact, archive: Path
) -> None:
    store = ModelStore(tmp_path / "there")
    publish_tiny_model(tmp_path / "there", seed=5)
    found = import_version(store, archive)
    assert (found.id, found.fingerprint) == ("tiny:2", artifact.fingerprint)
    assert found.manifest.files == artifact.manifest.files
    assert found.manifest.metrics == artifact.manifest.metrics
    assert found.weights_path.read_bytes() == artifact.weights_path.read_bytes()
    assert import_version(store, archive, name="other").id == "other:1"
    again = tmp_path / "again.fc7.tar"
    export_version(artifact, again)
    assert again.read_bytes() == archive.read_bytes()


def test_export_keeps_existing_files_and_rejects_damaged_versions(
    tmp_path: Path, artifact: Artifact, archive: Path
) -> None:
    with pytest.raises(ModelArchiveError, match="exists already"):
        export_version(artifact, archive)
    with pytest.raises(ModelArchiveError, match="nowhere"):
        export_version(artifact, tmp_path / "nowhere" / "a.tar")
    with artifact.weights_path.open("r+b") as file:
        file.write(b"edited")
    with pytest.raises(ArtifactCorruptError, match=r"weights\.bin"):
        export_version(artifact, tmp_path / "other.fc7.tar")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["here", "tiny.fc7.tar"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda members: [*members, extra("../../escaped")], "not listed"),
        (lambda members: [*members, extra("/tmp/escaped")], "not listed"),
        (
            lambda members: [*members, extra("is not a regular file", kind=tarfile.SYMTYPE, link="/etc/passwd")],
            "is not a regular file",
        ),
        (
            lambda members: [*members, extra("is not a regular file", kind=tarfile.LNKTYPE, link="model.onnx")],
            "is not a regular file",
        ),
        (
            lambda members: [*members[:-1], extra(members[-1][0].name, kind=tarfile.SYMTYPE, link="/etc/passwd")],
            "is not a regular file",
        ),
        (lambda members: [*members, extra("fifo", kind=tarfile.FIFOTYPE)], "is not a regular file"),
        (lambda members: [*members, extra("more.txt")], "not listed"),
        (lambda members: [*members, members[-1]], "twice"),
        (lambda members: members[:-1], "is missing"),
        (lambda members: members[1:], "does not start with manifest.json"),
        (lambda members: renamed(members, 1, "model2.onnx"), "not listed"),
        (lambda members: [*members[:-1], (members[-1][0], members[-1][1][:-1])], "differs from the manifest"),
        (lambda members: [*members[:-1], (members[-1][0], b"?" + members[-1][1][1:])], "differ from the manifest"),
        (lambda members: members[:0], "does not start"),
    ],
)
def test_modified_archive_is_rejected_and_leaves_nothing_behind(
    tmp_path: Path, archive: Path, change: Callable[[Members], Members], words: str
) -> None:
    rewrite(archive, change)
    store = ModelStore(tmp_path / "there")
    with pytest.raises(ModelArchiveError, match=words) as refused:
        import_version(store, archive)
    assert str(archive) in str(refused.value)
    assert store.list() == []
    assert not [path for path in (tmp_path / "there").rglob("*") if path.is_file() and ".lock" not in path.name]
    assert not (tmp_path / "escaped").exists()


@pytest.mark.parametrize("kept", [0, 100, 600, 5000, -3000])
def test_truncated_archive_is_rejected(tmp_path: Path, archive: Path, kept: int) -> None:
    data = archive.read_bytes()
    archive.write_bytes(data[: kept if kept >= 0 else len(data) // 2])
    with pytest.raises(ModelArchiveError):
        import_version(ModelStore(tmp_path / "there"), archive)
    assert ModelStore(tmp_path / "there").list() == []


def test_other_files_and_newer_manifests_are_rejected(tmp_path: Path, archive: Path) -> None:
    store = ModelStore(tmp_path / "there")
    for path in (tmp_path / "nothing.tar", tmp_path / "text.tar", tmp_path):
        if path.name == "text.tar":
            path.write_text("no archive")
        with pytest.raises(ModelArchiveError, match=path.name):
            import_version(store, path)

    def newer(members: Members) -> Members:
        manifest = json.loads(members[0][1])
        return [(members[0][0], json.dumps(manifest | {"format": 2, "producer": "fc7 9.9.0"}).encode()), *members[1:]]

    rewrite(archive, newer)
    with pytest.raises(ArtifactFormatError, match=r"format 2.*Install the version that wrote it \(fc7 9\.9\.0\)"):
        import_version(store, archive)


def test_manifest_with_a_path_outside_the_version_is_rejected(tmp_path: Path, archive: Path) -> None:
    def outside(members: Members) -> Members:
        manifest = json.loads(members[0][1])
        manifest["files"]["../escaped"] = {"sha256": "0" * 64, "size": 1}
        return [(members[0][0], json.dumps(manifest).encode()), *members[1:], extra("../escaped")]

    rewrite(archive, outside)
    with pytest.raises(ArtifactFormatError, match="not a path inside"):
        import_version(ModelStore(tmp_path / "there"), archive)
    assert not list(tmp_path.rglob("escaped"))
