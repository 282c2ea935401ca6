"""Operations on backups. They need a key with the scope admin. A restore is a command on the server."""

from __future__ import annotations

from fc7_client.binding import operation
from fc7_client.models import Backup, Backups, Job
from fc7_client.requests import ask, parameters, segment
from fc7_client.steps import Flow, Request


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
    def delete_backup(self, name: str) -> Flow[None]:
        """Delete a backup. Raises NotFoundError."""
        yield Request("DELETE", _path(name))


def _path(name: str) -> str:
    return f"/v1/backups/{segment(name)}"
