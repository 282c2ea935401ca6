"""All versions of all models under one folder: publish, list, activate, roll back, remove.

    $FC7_HOME/models/<name>/<version>/   versions 1, 2, 3, ...; a published one is never changed
    $FC7_HOME/models/.staging-*/         versions being written; left ones are cleared at the next publishing
    $FC7_HOME/active.json                the served version, and the one before it

Promises: a version is visible whole or not at all, whatever kills the process; concurrent publishers, in any number of
processes, get different numbers, and a number is never given twice; only a verified version is activated.
Does not: load graphs, tell a running server of a change, work on file systems without `flock` and atomic rename.
"""

from __future__ import annotations

import errno
import json
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from model_store.artifact import (
    MANIFEST_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    Artifact,
    FileEntry,
    Manifest,
    ManifestDraft,
    check_name,
)
from model_store.durable import locked, sha256_of, sync, sync_tree, write_atomic
from model_store.errors import (
    ArtifactError,
    ArtifactFormatError,
    ModelInUseError,
    ModelNameError,
    ModelNotFoundError,
    NoActiveModelError,
    NoPreviousModelError,
    PublishError,
)

_STAGING = ".staging-"
_REMOVED = ".removed-"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_CANNOT_WRITE = (None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A version by name and number; as text `solar:1`."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class ActiveModels:
    """The version that is served, and the one that was before it."""

    active: ModelRef
    previous: ModelRef | None


def parse_reference(reference: str) -> tuple[str, int | None]:
    """Split "solar:1" into name and version, "solar" into name and None (the newest). Raises ModelNameError."""
    name, colon, version = reference.partition(":")
    if colon and not _NUMBER.fullmatch(version):
        raise ModelNameError(reference)
    return check_name(name), int(version) if colon else None


class ModelStore:
    """The versions under `home`/models. Holds no state but the folder: any number of them may work on one `home`."""

    def __init__(self, home: Path, *, precision: str = "fp32") -> None:
        """precision: the one in which versions are handed out that have it; others come in fp32."""
        self.home = home
        self._precision = precision
        self._models = home / "models"
        self._active_file = home / "active.json"

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """Make an empty hidden folder to write a version of `name` into; it is removed at the end unless published.

        Raises ModelNameError, and PublishError for the disk's refusals in the block (full, read-only, not permitted).
        """
        folder = self._models / f"{_STAGING}{check_name(name)}-{secrets.token_hex(8)}"
        with _writing(folder):
            self._models.mkdir(parents=True, exist_ok=True)
            self._clear_left_overs()
            with locked(self._models / ".staging.lock", shared=True):
                folder.mkdir()
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)

    def _clear_left_overs(self) -> None:
        # Whoever writes a version holds the lock shared: when it can be had alone, every staging folder is a dead
        # one's.
        with locked(self._models / ".staging.lock", wait=False) as alone:
            if alone:
                for folder in [*self._models.glob(f"{_STAGING}*/"), *self._models.glob(f"*/{_REMOVED}*/")]:
                    shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, draft: ManifestDraft) -> Artifact:
        """Make the folder `staged`, from `staging`, the next version of `draft.name`; every file in it belongs to it.

        `staged` holds `model.onnx` and `weights.bin`, and may hold more (`report/`). Returns the version, verified.
        Raises PublishError: nothing is visible then.
        """
        with _writing(staged):
            files = entries_of(staged)
            if missing := {MODEL_FILE, WEIGHTS_FILE} - files.keys():
                raise PublishError(staged / min(missing), "the version has no such file")
            sync_tree(staged)
            parent = self._models / draft.name
            parent.mkdir(exist_ok=True)
            sync(self._models)
            sync(self.home)
            with self._changing(staged):
                version = self._last_number(draft.name) + 1
                manifest = Manifest.complete(draft, version=version, created=datetime.now(UTC), files=files)
                write_atomic(staged / MANIFEST_FILE, manifest.to_bytes())
                target = staged.rename(parent / str(version))
            sync(parent)
        return Artifact(target, manifest, verified=True)

    def _last_number(self, name: str) -> int:
        parent = self._models / name
        removed = [int(path.name.removeprefix(_REMOVED)) for path in parent.glob(f"{_REMOVED}*") if path.is_file()]
        return max([0, *self._versions(name), *removed])

    def get(self, name: str, version: int | None = None, *, verify: bool = True) -> Artifact:
        """Return a version of `name`, the newest unless one is given.

        Raises ModelNameError, ModelNotFoundError, and ArtifactError for one that cannot be used.
        """
        versions = self._versions(check_name(name))
        if not versions or (version is not None and version not in versions):
            raise ModelNotFoundError(name, version, self._known())
        return self._open(name, versions[-1] if version is None else version, verify=verify)

    def resolve(self, reference: str, *, verify: bool = True) -> Artifact:
        """Return what "solar:1", or "solar" for its newest version, stands for. Raises as `get` does."""
        name, version = parse_reference(reference)
        return self.get(name, version, verify=verify)

    def active(self) -> ActiveModels | None:
        """Return which version is served and which was before it; None when none was ever activated.

        Raises ArtifactFormatError when `active.json` cannot be read.
        """
        try:
            values = json.loads(self._active_file.read_bytes())
            previous = values["previous"]
            return ActiveModels(_reference(values["active"]), None if previous is None else _reference(previous))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, ModelNameError) as exc:
            raise ArtifactFormatError(
                self._active_file, f"it does not name a version ({exc}). Set it again: fc7 models activate NAME:VERSION"
            ) from exc

    def active_artifact(self, *, verify: bool = True) -> Artifact:
        """Return the version that is served. Raises NoActiveModelError, and as `get` does."""
        active = self.active()
        if active is None:
            raise NoActiveModelError(self._known())
        return self.get(active.active.name, active.active.version, verify=verify)

    def activate(self, name: str, version: int | None = None, *, verify: bool = True) -> Artifact:
        """Verify a version (the newest unless one is given) and make it the one that is served.

        verify: False only if the caller has just verified its files. The one that was served becomes the previous one; activating it again changes nothing.
        Raises as `get` does, and PublishError when `active.json` cannot be written: the old one stays active then.
        """
        with self._changing(self._active_file):
            return self._activate(self.get(name, version, verify=verify))

    def rollback(self) -> Artifact:
        """Verify the previous version and serve it again; the one that is left becomes the previous one.

        Raises NoActiveModelError, NoPreviousModelError, and as `activate` does.
        """
        with self._changing(self._active_file):
            now = self.active()
            if now is None:
                raise NoActiveModelError(self._known())
            if now.previous is None:
                raise NoPreviousModelError
            return self._activate(self.get(now.previous.name, now.previous.version))

    def _activate(self, artifact: Artifact) -> Artifact:
        chosen = ModelRef(artifact.name, artifact.version)
        now = None
        with suppress(ArtifactFormatError):  # activating is how a broken file is mended
            now = self.active()
        if now is None or now.active != chosen:
            self._write_active(ActiveModels(chosen, now.active if now else None))
        return artifact

    def remove(self, name: str, version: int) -> None:
        """Delete a version for good; its number is not given again. The previous version may go: there is none then.

        Raises ModelNotFoundError, ModelInUseError for the active one, PublishError when the disk refuses.
        """
        folder = self._models / check_name(name) / str(version)
        with self._changing(folder):
            if version not in self._versions(name):
                raise ModelNotFoundError(name, version, self._known())
            reference, now = ModelRef(name, version), self.active()
            if now and reference == now.active:
                raise ModelInUseError(str(reference), "the active version")
            if now and reference == now.previous:
                self._write_active(ActiveModels(now.active, None))
            (folder.parent / f"{_REMOVED}{version}").touch()
            hidden = folder.rename(folder.parent / f"{_REMOVED}{version}-{secrets.token_hex(4)}")
            sync(folder.parent)
            shutil.rmtree(hidden, ignore_errors=True)  # what a kill leaves is cleared at the next publishing

    @contextmanager
    def _changing(self, place: Path) -> Iterator[None]:
        """Let one process at a time change names and `active.json`; the disk's refusals become PublishError."""
        if not self._models.is_dir():  # nothing to protect, and asking for a model makes no folders
            yield
            return
        with _writing(place), locked(self._models / ".publish.lock"):
            yield

    def list(self) -> list[Artifact]:
        """Return all versions that can be read, by name and number, their files not verified."""
        return [*self.scan()[0]]

    def scan(self) -> tuple[Sequence[Artifact], Sequence[ArtifactError]]:
        """Return all versions that can be read, by name and number, and why others cannot be."""
        artifacts, errors = [], []
        for name in self._names():
            for version in self._versions(name):
                try:
                    artifacts.append(self._open(name, version, verify=False))
                except ArtifactError as exc:
                    errors.append(exc)
        return artifacts, errors

    def _open(self, name: str, version: int, *, verify: bool) -> Artifact:
        artifact = Artifact.open(self._models / name / str(version), verify=verify)
        if (artifact.name, artifact.version) != (name, version):
            raise ArtifactFormatError(
                artifact.path / MANIFEST_FILE, f"it is the manifest of {artifact.id}, in the folder of {name}:{version}"
            )
        return artifact.at(self._precision) if self._precision in artifact.precisions else artifact

    def _names(self) -> Sequence[str]:
        if not self._models.is_dir():
            return []
        return sorted(path.name for path in self._models.iterdir() if path.is_dir() and not path.name.startswith("."))

    def _versions(self, name: str) -> Sequence[int]:
        folder = self._models / name
        if not folder.is_dir():
            return []
        return sorted(int(path.name) for path in folder.iterdir() if _NUMBER.fullmatch(path.name))

    def _known(self) -> Sequence[str]:
        return [f"{name}:{version}" for name in self._names() for version in self._versions(name)]

    def _write_active(self, models: ActiveModels) -> None:
        write_atomic(self._active_file, (json.dumps({"format": 1, **asdict(models)}, indent=2) + "\n").encode())


def _reference(values: dict[str, object]) -> ModelRef:
    name, version = values["name"], values["version"]
    if not isinstance(name, str) or not isinstance(version, int):
        raise TypeError("name must be text and version a number")
    return ModelRef(check_name(name), version)


def entries_of(staged: Path) -> dict[str, FileEntry]:
    """Return what a manifest says of every file in `staged`. Raises PublishError for what is no file or folder."""
    files = {}
    for path in sorted(staged.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise PublishError(path, "a version holds plain files and folders only")
        if path.is_file() and path != staged / MANIFEST_FILE:
            files[path.relative_to(staged).as_posix()] = FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
    return files


@contextmanager
def _writing(place: Path) -> Iterator[None]:
    """Turn the disk's refusals into PublishError; one without a path (a full disk in `write`) names `place`."""
    try:
        yield
    except OSError as exc:
        path = Path(exc.filename) if isinstance(exc.filename, str) else None
        if exc.errno in _CANNOT_WRITE and (path is None or path.is_relative_to(place.parent)):
            raise PublishError(path or place, exc.strerror or str(exc)) from exc
        raise
