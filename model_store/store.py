"""The store of all published versions: publish, list, activate, roll back, remove.

    $FC7_HOME/models/<name>/<version>/   versions 1, 2, 3, ...; never changed once published
    $FC7_HOME/models/.staging-*/         versions being written; leftovers are removed at the next publishing
    $FC7_HOME/active.json                the active version and the previous one

Guarantees: a version is either completely visible or not at all, even if the process is killed. Concurrent publishers,
also in different processes, get different version numbers, and no number is used twice. Only a verified version can be
activated.
Out of scope: loading graphs, notifying a running server, file systems without `flock` and atomic rename.
"""

from __future__ import annotations

import errno
import json
import re
import secrets
import shutil
import unicodedata
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from model_store import errors
from model_store.artifact import ONNXRUNTIME, Artifact
from model_store.durable import locked, sha256_of, sync, sync_tree, write_atomic
from model_store.manifest import (
    FULL,
    MANIFEST_FILE,
    MODEL_FILE,
    WEIGHTS_FILE,
    FileEntry,
    Manifest,
    ManifestDraft,
    check_name,
)

_STAGING = ".staging-"
_REMOVED = ".removed-"
_NUMBER = re.compile(r"[1-9][0-9]{0,8}")
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_CANNOT_WRITE = (None, *_DISK_FULL, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM)


@dataclass(frozen=True, slots=True)
class ModelRef:
    """A version by name and number, written `solar:1`."""

    name: str
    version: int

    def __str__(self) -> str:
        return f"{self.name}:{self.version}"


@dataclass(frozen=True, slots=True)
class ActiveModels:
    """The active version and the previous one."""

    active: ModelRef
    previous: ModelRef | None


def parse_reference(reference: str) -> tuple[str, int | None]:
    """Split "solar:1" into name and version, and "solar" into name and None (newest). Raises ModelNameError."""
    name, colon, version = reference.partition(":")
    if colon and not _NUMBER.fullmatch(version):
        raise errors.ModelNameError(reference)
    return check_name(name), int(version) if colon else None


def model_name_of(text: str) -> str:
    """Return a valid model name made of the name of a folder or file; "" if no character is left.

    Accents are removed ("Fotos Küche" gives "Fotos-Kuche"), other characters that are not allowed become "-".
    """
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^A-Za-z0-9._-]+", "-", plain).strip("._-")[:64]


class ModelStore:
    """The versions in `home`/models. All state is on disk: any number of stores may use one `home`."""

    def __init__(self, home: Path, *, precision: str = FULL, engine: str = ONNXRUNTIME) -> None:
        """precision: the precision to open versions in. Versions without it are opened in fp32.

        engine: what will run the versions, see `Artifact`.
        """
        self.home = home
        self._precision = precision
        self._engine = engine
        self._models = home / "models"
        self._active_file = home / "active.json"

    @contextmanager
    def staging(self, name: str) -> Iterator[Path]:
        """Create an empty hidden folder to write a version of `name` into. It is removed at the end of the block.

        `publish` moves the folder away before that. Raises ModelNameError, and PublishError if the disk is full or not
        writable.
        """
        folder = self._models / f"{_STAGING}{check_name(name)}-{secrets.token_hex(8)}"
        with _writing(folder):
            self._models.mkdir(parents=True, exist_ok=True)
            self._remove_leftovers()
            with locked(self._models / ".staging.lock", shared=True):
                folder.mkdir()
                try:
                    yield folder
                finally:
                    shutil.rmtree(folder, ignore_errors=True)

    def _remove_leftovers(self) -> None:
        # Every writer holds the lock in shared mode. If the exclusive lock is free, all staging folders are leftovers
        # of processes that died.
        with locked(self._models / ".staging.lock", wait=False) as alone:
            if alone:
                for folder in [*self._models.glob(f"{_STAGING}*/"), *self._models.glob(f"*/{_REMOVED}*/")]:
                    shutil.rmtree(folder, ignore_errors=True)

    def publish(self, staged: Path, draft: ManifestDraft) -> Artifact:
        """Publish the folder `staged`, created by `staging`, as the next version of `draft.name`.

        `staged` must contain `model.onnx` and `weights.bin`. All other files in it become part of the version too.
        Returns the verified version. Raises PublishError; nothing is visible then.
        """
        with _writing(staged):
            files = entries_of(staged)
            if missing := {MODEL_FILE, WEIGHTS_FILE} - files.keys():
                raise errors.PublishError(staged / min(missing), "the file is missing from the version")
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
        return Artifact(target, manifest, verified=True, engine=self._engine)

    def _last_number(self, name: str) -> int:
        parent = self._models / name
        removed = [int(path.name.removeprefix(_REMOVED)) for path in parent.glob(f"{_REMOVED}*") if path.is_file()]
        return max([0, *self._versions(name), *removed])

    def get(self, name: str, version: int | None = None, *, verify: bool = True) -> Artifact:
        """Return a version of `name`; the newest one for None.

        Raises ModelNameError, ModelNotFoundError, and ArtifactError for one that cannot be used.
        """
        versions = self._versions(check_name(name))
        if not versions or (version is not None and version not in versions):
            raise errors.ModelNotFoundError(name, version, self._known())
        return self._open(name, versions[-1] if version is None else version, verify=verify)

    def resolve(self, reference: str, *, verify: bool = True) -> Artifact:
        """Return the version that "solar:1", or "solar" for the newest, refers to. Raises the errors of `get`."""
        name, version = parse_reference(reference)
        return self.get(name, version, verify=verify)

    def active(self) -> ActiveModels | None:
        """Return the active and the previous version, or None if no version was ever activated.

        Raises ArtifactFormatError if `active.json` cannot be read.
        """
        try:
            values = json.loads(self._active_file.read_bytes())
            previous = values["previous"]
            return ActiveModels(_reference(values["active"]), None if previous is None else _reference(previous))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, KeyError, TypeError, errors.ModelNameError) as exc:
            raise errors.ArtifactFormatError(
                self._active_file,
                f"it does not name a version ({exc}). Write it again: fc7 models activate NAME:VERSION",
            ) from exc

    def active_artifact(self, *, verify: bool = True) -> Artifact:
        """Return the active version. Raises NoActiveModelError, and the errors of `get`."""
        active = self.active()
        if active is None:
            raise errors.NoActiveModelError(self._known())
        return self.get(active.active.name, active.active.version, verify=verify)

    def previous(self, *, verify: bool = True) -> Artifact:
        """Return the previous version. Raises NoActiveModelError, NoPreviousModelError, and the errors of `get`."""
        now = self.active()
        if now is None:
            raise errors.NoActiveModelError(self._known())
        if now.previous is None:
            raise errors.NoPreviousModelError
        return self.get(now.previous.name, now.previous.version, verify=verify)

    def activate(self, name: str, version: int | None = None, *, verify: bool = True) -> Artifact:
        """Verify a version (the newest for None) and make it the active one. No effect if it is active already.

        verify: False if the caller has just verified the files. The version that was active becomes the previous one.
        Raises the errors of `get`, and ActivationError if `active.json` cannot be written; the active version does not
        change then.
        """
        with self._activating():
            return self._activate(self.get(name, version, verify=verify))

    def rollback(self) -> Artifact:
        """Verify the previous version and make it the active one. The active version becomes the previous one.

        Raises the errors of `previous` and `activate`.
        """
        with self._activating():
            return self._activate(self.previous())

    def _activate(self, artifact: Artifact) -> Artifact:
        chosen = ModelRef(artifact.name, artifact.version)
        now = None
        with suppress(errors.ArtifactFormatError):  # activating a version also repairs a broken file
            now = self.active()
        if now is None or now.active != chosen:
            self._write_active(ActiveModels(chosen, now.active if now else None))
        return artifact

    def remove(self, name: str, version: int) -> None:
        """Delete a version permanently. Its number is not used again.

        The previous version can be removed; there is no previous version then.
        Raises ModelNotFoundError, ModelInUseError for the active version, PublishError if the disk is not writable.
        """
        folder = self._models / check_name(name) / str(version)
        with self._changing(folder):
            if version not in self._versions(name):
                raise errors.ModelNotFoundError(name, version, self._known())
            reference, now = ModelRef(name, version), self.active()
            if now and reference == now.active:
                raise errors.ModelInUseError(str(reference), "the active version")
            if now and reference == now.previous:
                self._write_active(ActiveModels(now.active, None))
            (folder.parent / f"{_REMOVED}{version}").touch()
            hidden = folder.rename(folder.parent / f"{_REMOVED}{version}-{secrets.token_hex(4)}")
            sync(folder.parent)
            shutil.rmtree(hidden, ignore_errors=True)  # leftovers are removed at the next publishing

    @contextmanager
    def _changing(self, path: Path) -> Iterator[None]:
        """Hold the lock for changes of versions and `active.json`. Turns write errors into PublishError."""
        if not self._models.is_dir():  # nothing to protect; a read must not create folders
            yield
            return
        with _writing(path), locked(self._models / ".publish.lock"):
            yield

    @contextmanager
    def _activating(self) -> Iterator[None]:
        try:
            with self._changing(self._active_file):
                yield
        except (OSError, errors.PublishError) as exc:
            cause = exc if isinstance(exc, OSError) else exc.__cause__
            full = isinstance(cause, OSError) and cause.errno in _DISK_FULL
            error = errors.ActivationDiskFullError if full else errors.ActivationError
            raise error(self._active_file, str(exc.strerror if isinstance(exc, OSError) else exc.reason)) from exc

    def list(self) -> list[Artifact]:
        """Return all readable versions, ordered by name and number. Their files are not verified."""
        return [*self.scan()[0]]

    def find(self, fingerprint: str) -> Artifact | None:
        """Return the version, in the precision and for the engine, whose vectors have this fingerprint; else None.

        Versions with files in the precision of the store are preferred, because the others cannot be served.
        """
        variants = [variant for artifact in self.list() for variant in artifact.variants()]
        found = [variant for variant in variants if variant.fingerprint == fingerprint]
        return min(found, key=lambda variant: self._precision not in variant.precisions, default=None)

    def scan(self) -> tuple[Sequence[Artifact], Sequence[errors.ArtifactError]]:
        """Return all readable versions, ordered by name and number, and the errors of the others."""
        artifacts, unreadable = [], []
        for name in self._names():
            for version in self._versions(name):
                try:
                    artifacts.append(self._open(name, version, verify=False))
                except errors.ArtifactError as exc:
                    unreadable.append(exc)
        return artifacts, unreadable

    def _open(self, name: str, version: int, *, verify: bool) -> Artifact:
        artifact = Artifact.open(self._models / name / str(version), verify=verify)
        if (artifact.name, artifact.version) != (name, version):
            raise errors.ArtifactFormatError(
                artifact.path / MANIFEST_FILE,
                f"it is the manifest of {artifact.id}, but it is in the folder of {name}:{version}",
            )
        return artifact.at(self._precision if self._precision in artifact.precisions else FULL, self._engine)

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
        former = self._active_file.read_bytes() if self._active_file.exists() else None
        try:
            write_atomic(self._active_file, (json.dumps({"format": 1, **asdict(models)}, indent=2) + "\n").encode())
        except OSError:
            # The new file may be in place if only the last step failed, the sync of the folder.
            with suppress(OSError):
                if former is None:
                    self._active_file.unlink(missing_ok=True)
                else:
                    write_atomic(self._active_file, former)
            raise


def require_better_than_baseline(artifact: Artifact) -> None:
    """Raise NoBetterThanBaselineError if the version's validation shows nothing better than a constant prediction.

    Versions without such figures (imported weights) pass.
    """
    metrics = artifact.manifest.metrics
    if metrics.get("better_than_baseline", True):
        return
    low, high = (f"{1 - error:.1%}" for error in reversed(metrics["top1_error_interval"]))
    raise errors.NoBetterThanBaselineError(
        artifact.id,
        f"{1 - metrics['top1_error']:.1%} of {metrics['images']} validation images are correct (95 % interval {low} to "
        f"{high}), the most frequent class has {1 - metrics['majority_class_error']:.1%} of them, and the mean recall "
        f"of the classes is {metrics['balanced_accuracy']:.1%}",
    )


def _reference(values: dict[str, object]) -> ModelRef:
    name, version = values["name"], values["version"]
    if not isinstance(name, str) or not isinstance(version, int):
        raise TypeError("name must be a string and version a number")
    return ModelRef(check_name(name), version)


def entries_of(staged: Path) -> dict[str, FileEntry]:
    """Return the manifest entries of all files in `staged`. Raises PublishError for links and special files."""
    files = {}
    for path in sorted(staged.rglob("*")):
        if path.is_symlink() or not (path.is_file() or path.is_dir()):
            raise errors.PublishError(path, "a version can contain only regular files and folders")
        if path.is_file() and path != staged / MANIFEST_FILE:
            files[path.relative_to(staged).as_posix()] = FileEntry(sha256=sha256_of(path), size=path.stat().st_size)
    return files


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """Turn write errors into PublishError. An error without a path (a full disk in `write`) names `target`."""
    try:
        yield
    except OSError as exc:
        path = Path(exc.filename) if isinstance(exc.filename, str) else None
        if exc.errno in _CANNOT_WRITE and (path is None or path.is_relative_to(target.parent)):
            raise errors.PublishError(path or target, exc.strerror or str(exc)) from exc
        raise
