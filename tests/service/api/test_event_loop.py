"""Bodies that are expensive to parse do not stop the event loop: other requests are answered meanwhile."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator

import httpx
import pytest

from service.api.bounded_json import MAX_VALUES, Numbers, cut_numbers, loads
from tests.support import pictures
from tests.support.server import ProcessServer, process_server
from tests.support.tiny_model import publish_tiny_model

_MAX_STOP_S = 0.4  # the machine may be busy; parsing such bodies in one go would take seconds
_INFER = "/v2/models/tiny/infer"
_TICKER = """
import asyncio, time, service.server as server
on_tick = server.Server.on_tick
async def tick(state):
    while True:
        started = time.monotonic()
        await asyncio.sleep(0.005)
        state.longest = max(state.longest, time.monotonic() - started)
async def on_first_tick(self, counter):
    if not hasattr(self._state, "longest"):
        self._state.longest = 0.0
        self._state.ticker = asyncio.create_task(tick(self._state))
        self._state.why_not_ready = lambda: [str(self._state.longest), self._state.__setattr__("longest", 0.0) or ""]
    return await on_tick(self, counter)
server.Server.on_tick = on_first_tick
"""


@pytest.fixture(scope="module")
def process(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ProcessServer]:
    home = tmp_path_factory.mktemp("loop") / "home"
    publish_tiny_model(home)
    with process_server(home, before=_TICKER, FC7_DEADLINE_S="60") as server:
        yield server


def longest_stop(server: ProcessServer) -> float:
    """Return the longest stop of the event loop since the last call, in seconds."""
    return float(httpx.get(f"{server.url}/readyz").json()["reasons"][0])


def form(*parts: tuple[str, bytes]) -> tuple[dict[str, str], bytes]:
    body = b"".join(b"--B\r\n%b\r\n\r\n%b\r\n" % (head.encode(), data) for head, data in parts) + b"--B--\r\n"
    return {"Content-Type": "multipart/form-data; boundary=B"}, body


_FILE = 'Content-Disposition: form-data; name="file"; filename="a.jpg"'
_METADATA = 'Content-Disposition: form-data; name="metadata"'
_KEYS = json.dumps({str(number): number for number in range(200_000)}).encode()


def cases() -> dict[str, tuple[str, dict[str, str], bytes, int]]:
    picture = (_FILE, pictures.jpeg())
    zipped = {"Content-Encoding": "gzip"}
    data = b",".join(b"%d" % (number % 256) for number in range(150_528))
    tensor = b'{"inputs":[{"name":"pixels","datatype":"UINT8","shape":[%d,224,224,3],"data":[%b]}]}'
    return {
        "18.9 MB of metadata": ("/v1/images", *form((_METADATA, b" " * 18_900_000), picture), 422),
        "metadata of 200,000 keys": ("/v1/images", *form(picture, (_METADATA, _KEYS)), 422),
        "metadata of many small lists": ("/v1/images", *form(picture, (_METADATA, b"[" * 990_000)), 422),
        "100,000 parts": ("/v1/images", *form(*[(_FILE, b"")] * 100_000), 413),
        "100,000 headers": ("/v1/images", *form((_FILE + "\r\nA: b" * 100_000, b"")), 400),
        "a long file name": ("/v1/images", *form((_FILE.replace("a.jpg", "a" * 1_000_000), b"")), 400),
        "quotes and escapes in a file name": ("/v1/images", *form((_FILE.replace("a.jpg", '\\"' * 1900), b"")), 422),
        "urlencoded": ("/v1/images", {"Content-Type": "application/x-www-form-urlencoded"}, b"a=b&" * 1_000_000, 415),
        "lists in gzip": (_INFER, zipped, gzip.compress(b"[" + b"[]," * 6_500_000 + b"[]]"), 400),
        "numbers in gzip": (_INFER, zipped, gzip.compress(b'{"data":[' + b"0," * 9_900_000 + b"0]}"), 400),
        "nested lists": (_INFER, {}, b"[" * 19_000_000, 400),
        "huge numbers": (_INFER, {}, b"[" + b"9" * 19_000_000 + b"]", 400),
        "huge exponents": (_INFER, {}, b'{"id":1e400000,"inputs":[NaN]}', 400),
        "10 images as numbers": (_INFER, {}, tensor % (10, b",".join([data] * 10)), 200),
    }


@pytest.mark.parametrize("case", cases())
def test_the_event_loop_is_not_stopped(process: ProcessServer, case: str) -> None:
    path, headers, body, status = cases()[case]
    stops: list[float] = []
    while not stops or (stops[-1] > _MAX_STOP_S and len(stops) < 5):  # other processes may stop it too
        longest_stop(process)
        answer = httpx.post(process.url + path, headers=headers, content=body, timeout=60)
        assert answer.status_code == status, answer.text
        stops.append(longest_stop(process))
    assert min(stops) < _MAX_STOP_S


def test_numbers_are_parsed_as_the_json_parser_would() -> None:
    nested = [[[number % 256 for number in range(row, row + 500)] for row in range(100)]]
    text = json.dumps({"id": '"data": [1]', "data": nested}, indent=1).encode()
    document, numbers = cut_numbers(text, "cut")
    assert loads(document) == {"id": '"data": [1]', "data": "cut"}
    assert numbers is not None
    assert numbers.parse((50_000,), (1, 100, 500)).tolist() == [value for row in nested[0] for value in row]
    with pytest.raises(ValueError, match="nested differently"):
        numbers.parse((50_000,), (100, 1, 500))


@pytest.mark.parametrize(
    "text", [b"[1,,2]", b"[1 2,3,4]", b"[01,2,3]", b"[1,2,-3]", b"[1,2,1.0]", b"[1,2,256]", b"[1,2,]"]
)
def test_invalid_numbers_are_rejected(text: bytes) -> None:
    with pytest.raises(ValueError, match=r"^data "):
        Numbers(text).parse((3,))


def test_short_lists_and_lists_of_other_values_are_left_in_the_document() -> None:
    for document in (b'{"data": [1, 2]}', b'{"data": ["' + b"1," * 200_000 + b'"]}'):
        assert cut_numbers(document, "cut") == (document, None)
    with pytest.raises(ValueError, match="more than 100,000"):
        loads(b"[" + b"0," * MAX_VALUES + b"0]")
