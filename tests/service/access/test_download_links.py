"""Links that download a file without a key."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from index.catalog.backup import take_snapshot
from service.api.downloads.links import DownloadLinks
from service.backup import create_backup
from service.errors import ForbiddenError
from tests.support.server import thread_server
from tests.support.tiny_model import publish_tiny_model

KEYS = {scope: f"{scope}-0123456789abcdef" for scope in ("read", "write", "admin")}


def test_a_link_downloads_only_what_it_was_made_for(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    with thread_server(tmp_path):  # creates an index
        pass
    take_snapshot(tmp_path, tmp_path / "snapshots" / "nightly")
    for name in ("nightly", "weekly"):
        create_backup(tmp_path, tmp_path / "backups" / name)
    with thread_server(tmp_path, api_keys=",".join(f"{scope}:{key}" for scope, key in KEYS.items())) as server:
        admin = {"Authorization": f"Bearer {KEYS['admin']}"}
        for path in ("/v1/backups/nightly", "/v1/index/snapshots/nightly"):
            token = server.client.post(f"{path}/link", headers=admin).json()["token"]
            with_key = server.client.get(path, headers=admin)
            with_link = server.client.get(path, params={"link": token})
            assert with_key.status_code == with_link.status_code == 200
            assert with_key.content == with_link.content
            for other in ("/v1/backups/weekly", "/v1/backups/nightly", "/v1/index/snapshots/nightly"):
                if other != path:
                    refused = server.client.get(other, params={"link": token})
                    assert (refused.status_code, "link is not valid" in refused.text) == (403, True)
            assert server.client.delete(path, params={"link": token}).status_code == 401
            assert server.client.get(path).status_code == 401


@pytest.mark.parametrize("path", ["/v1/backups", "/v1/index/snapshots"])
def test_only_the_scope_admin_may_use_copies(tmp_path: Path, path: str) -> None:
    publish_tiny_model(tmp_path)
    with thread_server(tmp_path):
        pass
    take_snapshot(tmp_path, tmp_path / "snapshots" / "nightly")
    create_backup(tmp_path, tmp_path / "backups" / "nightly")
    with thread_server(tmp_path, api_keys=",".join(f"{scope}:{key}" for scope, key in KEYS.items())) as server:
        for method, rest in (
            ("GET", ""),
            ("GET", "/nightly"),
            ("POST", "/nightly/link"),
            ("POST", "/nightly/verify"),
            ("DELETE", "/nightly"),
            ("POST", ""),
        ):
            found = [
                server.client.request(method, path + rest, headers={"Authorization": f"Bearer {key}"}).status_code
                for key in KEYS.values()
            ]
            assert found[:2] == [403, 403]
            assert found[2] in (200, 201, 202, 204)


def test_a_link_expires_and_cannot_be_changed() -> None:
    links = DownloadLinks()
    token, expires = links.make("backups/nightly")
    assert 500 < expires.timestamp() - time.time() <= 600
    links.check("backups/nightly", token)
    later = f"{int(expires.timestamp()) + 1}.{token.partition('.')[2]}"
    old = links.make("backups/nightly", valid_s=-1)[0]
    of_another_process = DownloadLinks().make("backups/nightly")[0]
    for wrong in (later, old, of_another_process, "", ".", "x", "é.é", "١٢.x", "9" * 30 + ".x", token[:-1]):
        with pytest.raises(ForbiddenError, match=r"POST /v1/backups/nightly/link"):
            links.check("backups/nightly", wrong)
