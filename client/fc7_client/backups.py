"""Operations on backups and snapshots. They need a key with the scope admin. A restore is a command on the server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from fc7_client.binding import operation
from fc7_client.models import Backup, Backups, Job, Snapshot, Snapshots
from fc7_client.requests import ask, parameters, segment
from fc7_client.steps import Flow, Request

_SNAPSHOTS: Final = "/v1/index/snapshots"


class BackupOperations:
    """Operations on backups."""

    @operation
    def create_backup(self, *, keep: int | None = None) -> Flow[Job]:
        """Start a backup, and return its job, whose id is the name of the backup.

        keep: number of backups to keep; older ones are deleted. None keeps all.
        """
        request = Request("POST", "/v1/backups", params=parameters(keep=keep), repeatable=False)
        return (yield from ask(request, Job))

    @operation
    def list_backups(self) -> Flow[list[Backup]]:
        """Return the backups, oldest first."""
        return (yield from ask(Request("GET", "/v1/backups"), Backups)).backups

    @operation
    def verify_backup(self, name: str) -> Flow[Backup]:
        """Compare every file of a backup with its checksum. Raises ConflictError if one is damaged, NotFoundError."""
        return (yield from ask(Request("POST", f"{_path(name)}/verify"), Backup))

    @operation
    def download_backup(self, name: str, target: str | os.PathLike[str]) -> Flow[Path]:
        """Download a backup as a tar file, and return its path. Raises NotFoundError."""
        path = Path(target)
        yield Request("GET", _path(name), target=path)
        return path

    @operation
    def delete_backup(self, name: str) -> Flow[None]:
        """Delete a backup. Raises NotFoundError."""
        yield Request("DELETE", _path(name))


class SnapshotOperations:
    """Operations on snapshots of the index."""

    @operation
    def take_snapshot(self) -> Flow[Snapshot]:
        """Copy the index on the server, and return the snapshot when it is complete."""
        return (yield from ask(Request("POST", _SNAPSHOTS, repeatable=False), Snapshot))

    @operation
    def list_snapshots(self) -> Flow[list[Snapshot]]:
        """Return the snapshots, oldest first."""
        return (yield from ask(Request("GET", _SNAPSHOTS), Snapshots)).snapshots

    @operation
    def verify_snapshot(self, name: str) -> Flow[Snapshot]:
        """Compare a snapshot with its checksum. Raises ConflictError if it is damaged, NotFoundError."""
        return (yield from ask(Request("POST", f"{_SNAPSHOTS}/{segment(name)}/verify"), Snapshot))

    @operation
    def download_snapshot(self, name: str, target: str | os.PathLike[str]) -> Flow[Path]:
        """Download a snapshot as a tar file, and return its path. Raises NotFoundError."""
        path = Path(target)
        yield Request("GET", f"{_SNAPSHOTS}/{segment(name)}", target=path)
        return path

    @operation
    def delete_snapshot(self, name: str) -> Flow[None]:
        """Delete a snapshot. Raises NotFoundError."""
        yield Request("DELETE", f"{_SNAPSHOTS}/{segment(name)}")


def _path(name: str) -> str:
    return f"/v1/backups/{segment(name)}"
