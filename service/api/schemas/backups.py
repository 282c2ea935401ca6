"""Backups of the home."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

from pydantic import BaseModel, Field

from service.backup import FOLDER, BackupManifest


class BackupInfo(BaseModel):
    """A backup. `path` is its folder below FC7_HOME; `fc7` is the version that wrote it; `size` is in bytes."""

    name: str
    path: str
    created: datetime
    fc7: str
    versions: list[str]
    active: str | None
    images: int | None = Field(description="Images in the index. Null if the backup has no index.")
    size: int

    @classmethod
    def of(cls, path: Path, manifest: BackupManifest) -> BackupInfo:
        """Describe the backup in the folder `path`."""
        facts = manifest.model_dump(include={"created", "fc7", "versions", "active", "images"})
        return cls(name=path.name, path=f"{FOLDER}/{path.name}", size=manifest.size, **facts)


class DownloadLink(BaseModel):
    """A token with which GET downloads one file without a key: `?link=TOKEN`."""

    token: str
    expires: datetime


class BackupsAnswer(BaseModel):
    """The backups, oldest first."""

    backups: list[BackupInfo]
