"""Put the application together: state, middleware, error answers, routers.

Promises: importing does nothing; one application holds all of its state in `app.state.fc7`; torch is never imported.
Does not: listen (see `service.server`), read the environment (see `service.settings`).
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from model_store.artifact import Artifact
from model_store.errors import Fc7Error
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from service.api.middleware import LingeringClose, Observe
from service.api.problems import (
    INFERENCE_PATH,
    PROBLEM_TYPE,
    kind_of,
    problem_of,
    problem_of_http,
    problem_of_validation,
)
from service.api.routes import ROUTERS
from service.errors import BadImageError
from service.observability.request_log import notes_of
from service.settings import Settings
from service.state import State

_DESCRIPTION = (
    "What is on an image, and which indexed images look like it: an AlexNet's classes, and the nearest by its fc7 "
    "features. Images are sent as bytes, never as URLs. Everything that is no success is application/problem+json; "
    'under /v2, the Open Inference Protocol, it is {"error": ...}.'
)


class _Application(FastAPI):
    """FastAPI, whose OpenAPI document gives errors the type that they have."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is None:
            document = super().openapi()
            for path, methods in document["paths"].items():
                if path.startswith(INFERENCE_PATH):
                    continue
                for operation in methods.values():
                    for status, answer in operation["responses"].items():
                        if status >= "400" and "content" in answer:
                            answer["content"] = {PROBLEM_TYPE: answer["content"]["application/json"]}
        return super().openapi()


def create_app(settings: Settings, *, make_runner: Callable[[Artifact, RunnerOptions], Runner] = Runner) -> FastAPI:
    """Return the application. Its lifespan opens model and index, and raises Fc7Error where it must not serve.

    make_runner: loads a version; for what has to stand before a Runner.
    """
    state = State(settings, make_runner)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(state.open)
        try:
            yield
        finally:
            state.drain()
            await asyncio.to_thread(state.close)

    app = _Application(
        title="fc7",
        version=version("fc7"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
    )
    app.state.fc7 = state
    for router in ROUTERS:
        app.include_router(router)
    app.add_exception_handler(Fc7Error, _answer_error)
    app.add_exception_handler(RequestValidationError, _answer_error)
    app.add_exception_handler(HTTPException, _answer_error)
    app.add_middleware(LingeringClose)
    app.add_middleware(Observe, state=state)  # the last added is the outermost
    return app


async def _answer_error(request: Request, error: Exception) -> JSONResponse:
    """Answer every foreseen error as a problem, and note its reason for the log line."""
    notes = notes_of(request.scope)
    if isinstance(error, Fc7Error):
        kind = kind_of(error.error if isinstance(error, BadImageError) else error)
        notes.reason = kind.slug
        if kind.status == 500:
            request.app.state.fc7.log.error("failed", request_id=notes.request_id, exc_info=error)
        answer = problem_of(error)
    elif isinstance(error, RequestValidationError):
        notes.reason = "parameter"
        answer = problem_of_validation(error)
    elif isinstance(error, HTTPException):
        answer = problem_of_http(error)
    else:
        raise error
    return answer.for_path(request.scope["path"])
