"""Every error has an HTTP status. Unexpected exceptions are a 500 without details, with the traceback in the log."""

from __future__ import annotations

import asyncio
import errno
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

import index.errors
import model_store.errors
import model_store.runtime.errors
import service.inference.errors
from model_store.errors import Fc7Error, ImageFormatError
from service import errors
from service.api.problems import STATUS, kind_of, problem_of
from service.app import create_app
from service.errors import BadImageError
from service.observability.logs import make_logger
from service.settings import Settings

MODULES = {
    module.__name__
    for module in (model_store.errors, model_store.runtime.errors, index.errors, errors, service.inference.errors)
}


def subclasses(kind: type[Fc7Error]) -> Iterator[type[Fc7Error]]:
    for child in kind.__subclasses__():
        if child.__module__ in MODULES:
            yield child
            yield from subclasses(child)


@pytest.mark.parametrize("kind", sorted(set(subclasses(Fc7Error)), key=str))
def test_every_error_has_an_http_status(kind: type[Fc7Error]) -> None:
    found = next((ancestor for ancestor in kind.__mro__ if ancestor in STATUS), None)
    assert found is not None, (
        f"{kind.__qualname__} has no entry in service.api.problems.STATUS, and neither has any base class"
    )


def test_the_nearest_base_class_decides_the_status() -> None:
    class NewerError(ImageFormatError):
        pass

    assert kind_of(NewerError("PDF", ("JPEG",))) is STATUS[ImageFormatError]


def test_slugs_are_unique() -> None:
    slugs = [kind.slug for kind in STATUS.values()]
    assert len(set(slugs)) == len(slugs)


def test_one_bad_image_of_several_keeps_its_status() -> None:
    answer = problem_of("/v1/classify", BadImageError(3, ImageFormatError("PDF", ("JPEG",))))
    assert answer.status_code == 415
    assert json.loads(bytes(answer.body))["index"] == 3


def test_an_unexpected_exception_returns_500_and_its_traceback_is_logged(tmp_path: Path) -> None:
    app = create_app(Settings(home=tmp_path))
    log = io.StringIO()
    app.state.fc7.log = make_logger("json", "info", log)

    @app.get("/bug")
    async def bug() -> None:
        raise ZeroDivisionError("secret detail")

    async def get_bug() -> httpx.Response:
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/bug", headers={"X-Request-ID": "my-request"})

    answer = asyncio.run(get_bug())
    assert answer.status_code == 500
    assert answer.headers["content-type"] == "application/problem+json"
    assert "secret" not in answer.text
    lines: list[dict[str, Any]] = [json.loads(line) for line in log.getvalue().splitlines()]
    trace = next(line for line in lines if line["event"] == "bug")
    assert "ZeroDivisionError: secret detail" in trace["exception"]
    assert trace["request_id"] == answer.headers["x-request-id"] == "my-request"


@pytest.mark.parametrize(
    ("error", "status", "words"),
    [
        (OSError(errno.EMFILE, "Too many open files"), 503, "no more open files"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), 503, "no more memory"),
        (MemoryError(), 503, "no more memory"),
        (RuntimeError("can't start new thread"), 503, "no more threads"),
        (OSError(errno.ENOSPC, "No space left on device"), 507, "No space left on device"),
        (OSError(errno.EIO, "Input/output error"), 507, "Input/output error"),
    ],
)
def test_errors_of_the_operating_system_have_a_status_and_no_traceback(
    tmp_path: Path, error: BaseException, status: int, words: str
) -> None:
    app = create_app(Settings(home=tmp_path))
    log = io.StringIO()
    app.state.fc7.log = make_logger("json", "info", log)

    @app.get("/fails")
    async def fails() -> None:
        raise error

    async def get() -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app=app), base_url="http://localhost") as client:
            return await client.get("/fails")

    answer = asyncio.run(get())
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")
    assert words in answer.json()["detail"]
    assert ("retry-after" in answer.headers) == (status == 503)
    assert "Traceback" not in log.getvalue()
