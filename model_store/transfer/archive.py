"""A version in one file, to move it to another machine: `NAME:VERSION` to `FILE.fc7.tar` and back.

Guarantees: the archive contains the manifest and exactly the files that it lists. An archive that is truncated, edited,
or has a link, an absolute path, `..` or an extra file is rejected and leaves nothing behind. An imported version is
byte-identical to the exported one and has the same fingerprint.
Out of scope: compression (weights hardly shrink), signatures, version numbers (an imported version gets the next
number of its name).
"""

from __future__ import annotations

import shutil
import tarfile
from pathlib import Path

from model_store.artifact import Artifact
from model_store.durable import atomic_file
from model_store.errors import ModelArchiveError
from model_store.manifest import MANIFEST_FILE, Manifest, ManifestDraft, read_manifest
from model_store.store import ModelStore

_MAX_MANIFEST_BYTES = 64 * 1024 * 1024


def export_version(artifact: Artifact, target: Path) -> int:
    """Verify a version and write it to the new file `target`. Returns the size of the file in bytes.

    Raises ArtifactCorruptError for a file that differs from the manifest, ModelArchiveError if `target` exists or
    cannot be written; no file is left behind then.
    """
    artifact = Artifact.open(artifact.path)  # reads the files again: they may have changed since they were verified
    try:
        with (
            atomic_file(target, replace=False) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar,
        ):
            for name in (MANIFEST_FILE, *artifact.manifest.files):
                tar.add(artifact.path / name, name, recursive=False, filter=_without_owner)
    except FileExistsError as error:
        raise ModelArchiveError(target, "the file exists already. Choose another name") from error
    except OSError as error:
        raise ModelArchiveError(target, error.strerror or str(error)) from error
    return target.stat().st_size


def import_version(store: ModelStore, source: Path, *, name: str | None = None) -> Artifact:
    """Publish the version in the archive `source` as the next version of its name, or of `name`.

    Raises ModelArchiveError if the archive is not valid, ArtifactFormatError for a newer manifest format,
    ModelNameError, PublishError. Nothing is published then.
    """
    try:
        with source.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
            manifest = _manifest(source, tar, members)
            with store.staging(name or manifest.name) as folder:
                for member in members[1:]:
                    _extract(source, tar, member, folder)
                if differing := Artifact(folder, manifest, verified=False).differing():
                    raise ModelArchiveError(source, f"these members differ from the manifest: {', '.join(differing)}")
                draft = ManifestDraft(**{field: getattr(manifest, field) for field in ManifestDraft.model_fields})
                return store.publish(folder, draft.model_copy(update={"name": name or manifest.name}))
    except tarfile.TarError as error:
        raise ModelArchiveError(source, f"it is not a tar archive, or it is truncated ({error})") from error
    except FileNotFoundError as error:
        raise ModelArchiveError(source, "the file does not exist") from error
    except OSError as error:
        raise ModelArchiveError(source, error.strerror or str(error)) from error


def _manifest(source: Path, tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Manifest:
    """Return the manifest after checking that the members are exactly the files that it lists."""
    if not members or members[0].name != MANIFEST_FILE or not members[0].isreg():
        raise ModelArchiveError(source, f"it does not start with {MANIFEST_FILE}. Create it with fc7 models save")
    if members[0].size > _MAX_MANIFEST_BYTES:
        raise ModelArchiveError(source, f"its {MANIFEST_FILE} is too large ({members[0].size:,} bytes)")
    file = tar.extractfile(members[0])
    manifest = read_manifest(source / MANIFEST_FILE, file.read() if file else b"")
    for member in members[1:]:
        if not member.isreg():
            raise ModelArchiveError(source, f"its member {member.name!r} is not a regular file")
        if member.name not in manifest.files:
            raise ModelArchiveError(source, f"its member {member.name!r} is not listed in the manifest")
        if member.size != manifest.files[member.name].size:
            raise ModelArchiveError(
                source, f"its member {member.name} has {member.size:,} bytes, which differs from the manifest"
            )
    names = [member.name for member in members[1:]]
    if len(set(names)) < len(names):
        raise ModelArchiveError(source, "it contains a file twice")
    if missing := manifest.files.keys() - set(names):
        raise ModelArchiveError(source, f"the file {min(missing)} is missing")
    return manifest


def _extract(source: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one member. Its name is safe: the manifest lists only paths inside the version."""
    target = folder / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    file = tar.extractfile(member)
    if file is None:
        raise ModelArchiveError(source, f"its member {member.name} cannot be read")
    with target.open("xb") as out:
        shutil.copyfileobj(file, out, 1 << 20)


def _without_owner(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove owner and time, so that equal versions make equal archives."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o644
    return member
