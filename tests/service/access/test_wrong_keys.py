"""Requests with keys that are wrong in some way, over real HTTP, to a server with a keys file."""

from __future__ import annotations

import base64
import http.client
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from service.api_keys import Scope
from service.keys_file import create_key, digest_of, revoke_key
from service.rate_limit import Rate
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server
from tests.support.tiny_model import publish_tiny_model

FIXED = "a-key-of-the-environment"


@dataclass(frozen=True)
class Keys:
    server: ThreadServer
    read: str
    write: str
    expired: str
    revoked: str
    limited: str


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Keys]:
    home = tmp_path_factory.mktemp("wrong") / "home"
    publish_tiny_model(home)
    path = home / "keys.json"
    past = datetime.now(UTC) - timedelta(minutes=1)
    made = {
        "read": create_key(path, "reader", Scope.READ)[1],
        "write": create_key(path, "writer", Scope.WRITE)[1],
        "expired": create_key(path, "old", Scope.ADMIN, expires=past)[1],
        "revoked": create_key(path, "gone", Scope.ADMIN)[1],
        "limited": create_key(path, "slow", Scope.READ, rate=Rate(2, "hour"))[1],
    }
    revoke_key(path, "gone")
    with thread_server(home, api_keys=f"fixed:write:{FIXED}") as server:
        yield Keys(server, **made)


Headers = list[tuple[str, bytes]]


@dataclass(frozen=True)
class Answer:
    status: int
    headers: dict[str, str]
    problem: dict[str, object]


def send(server: ThreadServer, path: str, headers: Headers, method: str = "GET", body: bytes = b"") -> Answer:
    """Send a request with exactly these headers, which can be repeated and contain any bytes."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    connection.putrequest(method, path)
    for name, value in (*headers, ("Content-Length", str(len(body)).encode())):
        connection.putheader(name, value)
    connection.endheaders(body)
    answer = connection.getresponse()
    content = answer.read()
    connection.close()
    found = {name.lower(): value for name, value in answer.getheaders()}
    return Answer(answer.status, found, json.loads(content) if content.startswith(b"{") else {})


def bearer(key: str) -> Headers:
    return [("Authorization", b"Bearer " + key.encode())]


WRONG: Mapping[str, Callable[[Keys], Headers]] = {
    "missing": lambda _: [],
    "empty": lambda _: [("Authorization", b"Bearer "), ("X-API-Key", b"")],
    "unknown": lambda _: bearer("fc7_" + "A" * 43),
    "too short by one character": lambda keys: bearer(keys.read[:-1]),
    "too long by one character": lambda keys: bearer(keys.read + "A"),
    "in another case": lambda keys: bearer(keys.read.swapcase()),
    "its hash instead of itself": lambda keys: bearer(digest_of(keys.read)),
    "its name instead of itself": lambda _: bearer("reader"),
    "with a space inside": lambda keys: bearer(f"{keys.read[:20]} {keys.read[20:]}"),
    "with a prefix of the environment": lambda _: bearer(f"write:{FIXED}"),
    "not ASCII": lambda _: [("X-API-Key", b"\xff\xfe\xc3\xa9" * 8)],
    "very long": lambda _: [("X-API-Key", b"k" * 30_000)],
    "two headers, the first wrong": lambda keys: [*bearer("wrong"), ("X-API-Key", keys.read.encode())],
    "as a Basic password": lambda keys: [("Authorization", b"Basic " + base64.b64encode(f"user:{keys.read}".encode()))],
    "as a cookie": lambda keys: [("Cookie", f"X-API-Key={keys.read}; key={keys.read}".encode())],
    "of a scheme that is not known": lambda keys: [("Authorization", f"Token {keys.read}".encode())],
    "two keys in one header": lambda keys: bearer(f"{keys.read},{keys.write}"),
    "expired": lambda keys: bearer(keys.expired),
    "revoked": lambda keys: bearer(keys.revoked),
}


@pytest.mark.parametrize("way", WRONG)
@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/v1/models"), ("POST", "/v1/classify"), ("GET", "/v1/images/a/thumbnail")]
)
def test_a_wrong_key_gets_401_and_says_why(keys: Keys, method: str, path: str, way: str) -> None:
    headers = [*WRONG[way](keys), ("Content-Type", b"image/jpeg")]
    answer = send(keys.server, path, headers, method, pictures.jpeg() if method == "POST" else b"")
    assert answer.status == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["www-authenticate"].startswith('Bearer realm="fc7"')
    assert answer.problem["type"] == f"urn:fc7:problem:{'key-expired' if way == 'expired' else 'unauthorized'}"
    sent = any(
        (name == "X-API-Key" and value) or (value.lower().startswith(b"bearer ") and len(value) > 7)
        for name, value in headers
    )
    assert ('error="invalid_token"' in answer.headers["www-authenticate"]) is sent
    assert keys.read not in str(answer)


@pytest.mark.parametrize("path", ["/v1/models?key={}", "/v1/models?api_key={}&X-API-Key={}", "/v1/models?token={}"])
def test_a_key_in_the_address_is_ignored(keys: Keys, path: str) -> None:
    assert send(keys.server, path.replace("{}", keys.write), []).status == 401


def test_a_scope_that_is_too_low_gets_403_with_both_scopes(keys: Keys) -> None:
    answer = send(keys.server, "/v1/images/a", bearer(keys.read), "DELETE")
    assert answer.status == 403
    assert "requires a key with the scope write" in str(answer.problem["detail"])
    assert "Your key has the scope read" in str(answer.problem["detail"])
    answer = send(keys.server, "/v1/models/rollback", bearer(keys.write), "POST")
    assert (answer.status, "scope admin" in str(answer.problem["detail"])) == (403, True)


def test_right_keys_of_both_sources_are_accepted(keys: Keys) -> None:
    for key in (keys.read, keys.write, FIXED):
        assert send(keys.server, "/v1/models", bearer(key)).status == 200
    for key in (keys.write, FIXED):
        assert send(keys.server, "/v1/images/missing", bearer(key), "DELETE").status == 404


def test_a_repeated_header_counts_once(keys: Keys) -> None:
    assert send(keys.server, "/v1/models", [*bearer("wrong"), *bearer(keys.read)]).status == 401


@pytest.mark.parametrize("path", ["/v1/classify", "/v1/models", "/v2/models/tiny/infer"])
def test_more_requests_than_the_rate_get_429_on_every_kind_of_route(tmp_path: Path, path: str) -> None:
    publish_tiny_model(tmp_path)
    key = create_key(tmp_path / "keys.json", "slow", Scope.READ, rate=Rate(2, "hour"))[1]
    method, body = ("GET", b"") if path == "/v1/models" else ("POST", pictures.jpeg())
    headers = [*bearer(key), ("Content-Type", b"image/jpeg")]
    with thread_server(tmp_path) as server:
        statuses = [send(server, path, headers, method, body).status for _ in range(2)]
        assert 429 not in statuses
        answer = send(server, path, headers, method, body)
        assert answer.status == 429
        assert 1700 < int(answer.headers["retry-after"]) <= 1800, "one of two per hour"
        assert "slow may send 2/hour requests" in str(answer.problem.get("detail", answer.problem.get("error")))
        if path != "/v2/models/tiny/infer":
            assert answer.problem["type"] == "urn:fc7:problem:rate-limited"
        assert 'fc7_key_failures_total{reason="rate"} 1.0' in server.client.get("/metrics").text


def test_a_refused_scope_counts_against_the_rate_and_a_wrong_key_does_not(keys: Keys) -> None:
    for _ in range(5):
        assert send(keys.server, "/v1/models", bearer(keys.limited + "x")).status == 401
    assert send(keys.server, "/v1/images/a", bearer(keys.limited), "DELETE").status == 403
    assert send(keys.server, "/v1/models", bearer(keys.limited)).status == 200
    assert send(keys.server, "/v1/models", bearer(keys.limited)).status == 429


def test_failed_attempts_are_counted_by_reason(tmp_path: Path) -> None:
    publish_tiny_model(tmp_path)
    path = tmp_path / "keys.json"
    read = create_key(path, "reader", Scope.READ)[1]
    old = create_key(path, "old", Scope.READ, expires=datetime.now(UTC))[1]
    with thread_server(tmp_path) as server:
        assert 'fc7_key_failures_total{reason="unknown"} 0.0' in server.client.get("/metrics").text
        for headers in ([], bearer("wrong"), bearer("wrong2"), bearer(old), bearer(read)):
            send(server, "/v1/images/a", headers, "DELETE")
        found = server.client.get("/metrics").text
    counted = {reason: f'fc7_key_failures_total{{reason="{reason}"}} {count}.0' for reason, count in COUNTS.items()}
    assert {reason for reason, line in counted.items() if line not in found} == set()


COUNTS = {"missing": 1, "unknown": 2, "expired": 1, "scope": 1, "rate": 0}
