"""A version in one file, to carry it to another machine: `NAME:VERSION` to `FILE.fc7.tar` and back.

Promises: the archive holds the manifest and exactly the files that it lists; an archive that is cut, edited, or has a
link, an absolute path, `..` or a file too many is refused and leaves nothing behind; what is imported is, byte for byte
and by fingerprint, what was exported.
Does not: compress (weights hardly shrink), prove who made it (hashes, no signature), keep the number: an imported
version gets the next one of its name.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tarfile
from contextlib import suppress
from pathlib import Path
from typing import IO

from model_store.artifact import MANIFEST_FILE, Artifact, Manifest, ManifestDraft, read_manifest
from model_store.errors import ModelArchiveError
from model_store.store import ModelStore

_MOST_MANIFEST_BYTES = 64 * 1024 * 1024


def export_version(artifact: Artifact, target: Path) -> int:
    """Write a verified version into the new file `target`; return its size in bytes.

    Raises ArtifactCorruptError for a file that differs from the manifest, ModelArchiveError when `target` exists or the
    disk refuses; nothing is left then.
    """
    artifact.verify()
    if target.exists():
        raise ModelArchiveError(target, "it exists already, and is not replaced")
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with temporary.open("xb") as file:
            with tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as tar:
                for name in (MANIFEST_FILE, *artifact.manifest.files):
                    tar.add(artifact.path / name, name, recursive=False, filter=_plain)
            file.flush()
            os.fsync(file.fileno())
        os.link(temporary, target)  # fails where a rename would replace a file that came meanwhile
    except OSError as error:
        raise ModelArchiveError(target, error.strerror or str(error)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
    return target.stat().st_size


def import_version(store: ModelStore, source: Path, *, name: str | None = None) -> Artifact:
    """Publish the version in the archive `source` as the next one of its name, or of `name`.

    Raises ModelArchiveError for what is no whole archive of a version, ArtifactFormatError for a newer manifest format,
    ModelNameError, PublishError. Nothing of it is visible then.
    """
    try:
        with source.open("rb") as file, tarfile.open(fileobj=file, mode="r:") as tar:
            members = tar.getmembers()
            manifest = _manifest(source, tar, members)
            with store.staging(name or manifest.name) as folder:
                for member in members[1:]:
                    _extract(source, tar, member, folder)
                _compare(source, folder, manifest)
                draft = ManifestDraft(**{field: getattr(manifest, field) for field in ManifestDraft.model_fields})
                return store.publish(folder, draft.model_copy(update={"name": name or manifest.name}))
    except tarfile.TarError as error:
        raise ModelArchiveError(source, f"it is no tar archive, or a cut one ({error})") from error
    except FileNotFoundError as error:
        raise ModelArchiveError(source, "there is no such file") from error
    except OSError as error:
        raise ModelArchiveError(source, error.strerror or str(error)) from error


def _manifest(source: Path, tar: tarfile.TarFile, members: list[tarfile.TarInfo]) -> Manifest:
    """Return the manifest, once the list of members is exactly what it says."""
    if not members or members[0].name != MANIFEST_FILE or not members[0].isreg():
        raise ModelArchiveError(source, f"it does not begin with {MANIFEST_FILE}: make it with fc7 models save")
    if members[0].size > _MOST_MANIFEST_BYTES:
        raise ModelArchiveError(source, f"its {MANIFEST_FILE} has {members[0].size:,} bytes")
    file = tar.extractfile(members[0])
    manifest = read_manifest(source / MANIFEST_FILE, file.read() if file else b"")
    for member in members[1:]:
        if not member.isreg():
            raise ModelArchiveError(source, f"{member.name!r} in it is a link or no plain file")
        if member.name not in manifest.files:
            raise ModelArchiveError(source, f"{member.name!r} in it is not listed by its manifest")
        if member.size != manifest.files[member.name].size:
            raise ModelArchiveError(source, f"{member.name} in it has {member.size:,} bytes, unlike its manifest")
    names = [member.name for member in members[1:]]
    if len(set(names)) < len(names):
        raise ModelArchiveError(source, "it has a file twice")
    if missing := manifest.files.keys() - set(names):
        raise ModelArchiveError(source, f"{min(missing)} is missing in it")
    return manifest


def _extract(source: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    """Write one member; its name is one of the manifest's, which stay inside the version."""
    target = folder / member.name
    target.parent.mkdir(parents=True, exist_ok=True)
    file: IO[bytes] | None = tar.extractfile(member)
    if file is None:
        raise ModelArchiveError(source, f"{member.name} in it cannot be read")
    with target.open("xb") as out:
        shutil.copyfileobj(file, out, 1 << 20)


def _compare(source: Path, folder: Path, manifest: Manifest) -> None:
    found = Artifact(folder, manifest, verified=False)
    differing = found.differing()
    if differing:
        raise ModelArchiveError(source, f"{', '.join(differing)} in it is not what its manifest says")


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo:
    """Leave out who and when: equal versions make equal archives."""
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mtime = 0
    member.mode = 0o644
    return member
