"""Backups: one folder with everything of a home that cannot be made again, and the restore of it.

    backup.json     format, time, version of fc7, the versions, and size and SHA-256 of every file
    home/           active.json, models/ and codes/, as in the home
    index/          a snapshot of the index (see index.catalog.backup); missing if the home has none

Guarantees:
- A backup can be taken while a server runs. It is complete or does not exist, and its versions match their manifests.
- A restore checks every file of the backup, and that this release can read them, before it changes anything. What it
  replaces is moved to a folder of its own, so that it can be brought back. A restore that was killed can be repeated.

Out of scope: training runs, data sets and uploaded archives of jobs; an index on Milvus; compression and encryption.
"""

from __future__ import annotations

import hashlib
import json
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Final

from pydantic import AwareDatetime, BaseModel, Field, ValidationError, field_validator

from index.catalog.backup import has_usable_name, read_manifest, restore_snapshot, take_snapshot
from index.catalog.database import CATALOG_FILE
from index.catalog.lock import FolderLock
from index.errors import SnapshotError
from model_store.artifact import Artifact
from model_store.durable import locked, sha256_of, sync, sync_tree, write_atomic
from model_store.errors import ArtifactCorruptError, Fc7Error
from model_store.manifest import FileEntry, check_file_names
from model_store.store import ModelStore

FORMAT: Final = 1
MANIFEST: Final = "backup.json"
FOLDER: Final = "backups"
"""The folder of the backups in a home."""
_HOME: Final = "home"
_INDEX: Final = "index"
_PARTS: Final = ("active.json", "models", "codes")
_BLOCK: Final = 1 << 20

Advance = Callable[[str, int, int], None]
"""Called with the step, and the numbers of bytes done and to do."""


@dataclass(eq=False)
class BackupError(Fc7Error):
    """A backup cannot be taken, read or restored."""

    path: Path
    reason: str
    message = "The backup {path} {reason}."


@dataclass(eq=False)
class BackupNotFoundError(Fc7Error):
    """The folder of the backups has no complete backup of this name."""

    name: str

    def __str__(self) -> str:
        return f"No backup has the name {self.name[:80]!r}. GET /v1/backups lists all backups."


class BackupManifest(BaseModel):
    """The content of `backup.json`. files: by path relative to the backup."""

    format: int = FORMAT
    created: AwareDatetime
    fc7: str
    versions: tuple[str, ...]
    active: str | None
    images: int | None = Field(description="Images in the index. Null if the backup has no index.")
    files: dict[str, FileEntry]

    @field_validator("files")
    @classmethod
    def _files_stay_inside(cls, files: dict[str, FileEntry]) -> dict[str, FileEntry]:
        check_file_names(files, "backup")
        return files

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(entry.size for entry in self.files.values())


def create_backup(home: Path, target: Path, *, with_index: bool = True, advance: Advance = lambda *_: None) -> Path:
    """Write a backup of `home` to the new folder `target`, and return it. A running server is not disturbed.

    with_index: also copy the index, if the home has one. Raises BackupError, ArtifactCorruptError for a damaged
    version, and the errors of `take_snapshot`. There is no backup then.
    """
    if target.exists():
        raise BackupError(target, "exists already. Choose the name of a new folder")
    staged = target.with_name(f".{target.name}.{secrets.token_hex(4)}")
    try:
        with _writing(target):
            (staged / _HOME).mkdir(parents=True)
        images = None
        if with_index and (home / _INDEX / CATALOG_FILE).exists():
            # Before the models: the model of the index cannot be removed while it is active.
            snapshot = take_snapshot(home, staged / _INDEX, advance=lambda *counts: advance("index", *counts))
            images = snapshot.images
        with _writing(target):
            files = _copy_home(home, staged, advance)
            if images is not None:
                names = [path.relative_to(staged).as_posix() for path in _files_of(staged / _INDEX)]
                files |= {name: _entry(staged / name) for name in names}
            versions, active = _check_versions(staged / _HOME, files)
            manifest = BackupManifest(
                created=datetime.now(UTC),
                fc7=version("fc7"),
                versions=versions,
                active=active,
                images=images,
                files=files,
            )
            sync_tree(staged)
            write_atomic(staged / MANIFEST, manifest.model_dump_json(indent=2).encode() + b"\n")
            staged.rename(target)
            sync(target.parent)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return target


def list_backups(folder: Path) -> list[tuple[Path, BackupManifest]]:
    """Return the complete backups in `folder`, oldest first."""
    found = []
    for path in folder.iterdir() if folder.is_dir() else ():
        if _is_complete(path):
            with suppress(BackupError):
                found.append((path, read_backup(path)))
    return sorted(found, key=lambda each: each[1].created)


def find_backup(folder: Path, name: str) -> Path:
    """Return the backup of this name in `folder`, also if this fc7 cannot read it. Raises BackupNotFoundError."""
    for path in folder.iterdir() if folder.is_dir() else ():
        if path.name == name and _is_complete(path):
            return path
    raise BackupNotFoundError(name)


def _is_complete(path: Path) -> bool:
    """Return whether a folder is a complete backup. While it is being written, its name starts with a dot."""
    return has_usable_name(path) and (path / MANIFEST).is_file()


def remove_backup(path: Path) -> None:
    """Delete a backup. Raises BackupError."""
    with _writing(path):
        # Hidden first: a deletion that is interrupted does not leave half a backup.
        hidden = path.rename(path.with_name(f".{path.name}.{secrets.token_hex(4)}"))
        shutil.rmtree(hidden)


def remove_oldest(folder: Path, keep: int) -> list[Path]:
    """Delete all but the `keep` newest backups in `folder`; return the deleted ones."""
    backups = [path for path, _ in list_backups(folder)]
    deleted = backups[: max(0, len(backups) - keep)]
    for path in deleted:
        remove_backup(path)
    return deleted


def read_backup(path: Path) -> BackupManifest:
    """Return the manifest of a backup. Raises BackupError if it is incomplete or of a newer format."""
    if not path.is_dir():
        raise BackupError(path, "is not a folder")
    try:
        values = json.loads((path / MANIFEST).read_bytes())
    except FileNotFoundError:
        raise BackupError(path, f"has no {MANIFEST}: it is incomplete, or not a backup") from None
    except (OSError, ValueError, RecursionError) as error:
        raise BackupError(path, f"has a {MANIFEST} that cannot be read ({error})") from error
    number = values.get("format") if isinstance(values, dict) else None
    if isinstance(number, int) and number > FORMAT:
        writer, own = values.get("fc7", "of a later version"), version("fc7")
        reason = f"has format {number}, written by fc7 {writer}, but this fc7 ({own}) reads format {FORMAT}"
        raise BackupError(path, f"{reason}. Restore it with that version or a later one")
    try:
        return BackupManifest.model_validate(values)
    except ValidationError as error:
        where = ".".join(str(part) for part in error.errors()[0]["loc"])
        raise BackupError(path, f"has an invalid {MANIFEST} ({where or 'not an object'}): it is damaged") from None


def verify_backup(path: Path, *, advance: Advance = lambda *_: None) -> BackupManifest:
    """Compare every file of a backup with its manifest, and return that. Raises BackupError, naming all bad files."""
    manifest = read_backup(path)
    bad, done = [], 0
    for name, entry in manifest.files.items():
        try:
            if sha256_of(path / name) != entry.sha256:
                bad.append(f"{name} differs")
        except OSError as error:
            bad.append(f"{name}: {error.strerror}")
        done += entry.size
        advance("verifying", done, manifest.size)
    if bad:
        raise BackupError(path, f"is damaged: {'; '.join(bad)}. Use another backup")
    return manifest


def restore_backup(
    path: Path, home: Path, *, replace: bool = False, advance: Advance = lambda *_: None
) -> tuple[BackupManifest, Path | None]:
    """Restore a backup to `home`, and return its manifest and the folder with what it replaced, if anything.

    replace: whether the home may have versions or an index. They are moved to `home`/replaced-TIME.
    Raises BackupError, IndexLockedError if a server is running, and the errors of `restore_snapshot`.
    """
    manifest = verify_backup(path, advance=advance)
    _require_readable(path, manifest)
    parts = (*_PARTS, _INDEX)
    present = [part for part in parts if _is_used(home / part)]
    if present and not replace:
        raise BackupError(
            path, f"was not restored, because {home} has {', '.join(present)}. Give --replace to move them away"
        )
    aside = home / f"replaced-{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{secrets.token_hex(2)}"
    with _writing(home), closing(FolderLock(home / _INDEX)):
        (home / "models").mkdir(exist_ok=True)
        with locked(home / "models" / ".publish.lock"):
            staged = home / f".restore-{secrets.token_hex(4)}"
            try:
                _copy_back(path, manifest, staged, advance)
                # active.json comes last: until then, the home has no active version instead of a wrong one.
                for part in present:
                    aside.mkdir(exist_ok=True)
                    (home / part).rename(aside / part)
                for part in ("codes", "models", "active.json"):
                    if (staged / part).exists():
                        _discard_empty(home / part)
                        (staged / part).rename(home / part)
                sync(home)
            finally:
                shutil.rmtree(staged, ignore_errors=True)
    if manifest.images is not None:
        restore_snapshot(path / _INDEX, home, advance=lambda *counts: advance("index", *counts))
    return manifest, aside if present else None


def _require_readable(path: Path, manifest: BackupManifest) -> None:
    """Raise BackupError if the index or a version of the backup has a format of a later fc7."""
    reasons = []
    try:
        if manifest.images is not None:
            read_manifest(path / _INDEX)
    except SnapshotError as error:
        reasons.append(f"the index {error.reason}")
    reasons += [str(error).rstrip(".") for error in ModelStore(path / _HOME).scan()[1]]
    if reasons:
        raise BackupError(
            path,
            f"was written by fc7 {manifest.fc7}, and this fc7 ({version('fc7')}) cannot read it: {'; '.join(reasons)}. "
            "Nothing was restored. Restore it with that version or a later one",
        )


def _is_used(path: Path) -> bool:
    """Return whether a part of a home has content. Locks and hidden leftovers do not count."""
    if path.name == _INDEX:
        return (path / CATALOG_FILE).exists()
    return any(not each.name.startswith(".") for each in path.iterdir()) if path.is_dir() else path.exists()


def _discard_empty(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)


def _copy_home(home: Path, staged: Path, advance: Advance) -> dict[str, FileEntry]:
    """Copy active.json, versions and codes; return the entries of the copied files."""
    sources = [path for part in _PARTS for path in _files_of(home / part)]
    total, done = sum(path.stat().st_size for path in sources), 0
    files = {}
    for source in sources:
        name = f"{_HOME}/{source.relative_to(home).as_posix()}"
        (staged / name).parent.mkdir(parents=True, exist_ok=True)
        digest, size = hashlib.sha256(), 0
        with source.open("rb") as reader, (staged / name).open("xb") as writer:
            while block := reader.read(_BLOCK):
                digest.update(block)
                writer.write(block)
                size += len(block)
                done += len(block)
                advance("models", done, total)
        files[name] = FileEntry(sha256=digest.hexdigest(), size=size)
    return files


def _files_of(path: Path) -> Iterator[Path]:
    """Yield a file, or the files of a folder without hidden ones (locks, and versions that are being written)."""
    if path.is_file():
        yield path
    elif path.is_dir():
        for child in sorted(path.iterdir()):
            if not child.name.startswith("."):
                yield from _files_of(child)


def _check_versions(home: Path, files: dict[str, FileEntry]) -> tuple[tuple[str, ...], str | None]:
    """Return the copied versions and the active one. Raises ArtifactCorruptError if one differs from its manifest."""
    store = ModelStore(home)
    artifacts, unreadable = store.scan()
    if unreadable:
        raise unreadable[0]
    for artifact in artifacts:
        _compare(artifact, home, files)
    active = store.active()
    return tuple(artifact.id for artifact in artifacts), None if active is None else str(active.active)


def _compare(artifact: Artifact, home: Path, files: dict[str, FileEntry]) -> None:
    folder = artifact.path.relative_to(home).as_posix()
    for name, entry in artifact.manifest.files.items():
        copied = files.get(f"{_HOME}/{folder}/{name}")
        if copied is None or copied.sha256 != entry.sha256:
            raise ArtifactCorruptError(
                Path(folder) / name, entry.sha256, "missing" if copied is None else copied.sha256
            )


def _copy_back(path: Path, manifest: BackupManifest, staged: Path, advance: Advance) -> None:
    names = [name for name in manifest.files if name.startswith(f"{_HOME}/")]
    total, done = sum(manifest.files[name].size for name in names), 0
    for name in names:
        target = staged / name.removeprefix(f"{_HOME}/")
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path / name, target)
        done += manifest.files[name].size
        advance("models", done, total)
    if names:
        sync_tree(staged)


def _entry(path: Path) -> FileEntry:
    return FileEntry(sha256=sha256_of(path), size=path.stat().st_size)


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Turn an OSError in the block into BackupError."""
    try:
        yield
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        reason = f"could not be completed ({where}{error.strerror or error}). Fix the cause, and try again"
        raise BackupError(path, reason) from error
