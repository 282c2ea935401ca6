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

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from model_store.artifact import Artifact
from model_store.errors import Fc7Error
from model_store.runtime.options import RunnerOptions
from model_store.runtime.runner import Runner
from service.api.middleware import LingeringClose, Observe
from service.api.problems import INFERENCE_PATH, PROBLEM_TYPE, handle_error
from service.api.routes import ROUTERS
from service.settings import Settings
from service.state import State

_DESCRIPTION = (
    "Classifies images with an AlexNet, and finds similar indexed images by their fc7 features. Images are sent as "
    "bytes, never as URLs. All error responses are application/problem+json, except under /v2, the Open Inference "
    'Protocol, where they are {"error": ...}.'
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
    app.add_exception_handler(Fc7Error, handle_error)
    app.add_exception_handler(RequestValidationError, handle_error)
    app.add_exception_handler(HTTPException, handle_error)
    app.add_middleware(LingeringClose)
    app.add_middleware(Observe, state=state)  # the last added is the outermost
    return app
