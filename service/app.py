"""Assembles the application: state, middleware, error handlers and routers.

Guarantees: importing this module has no side effects. Every application keeps its state in `app.state`. torch is not
imported.
Out of scope: listening on a socket (see `service.server`), reading the environment (see `service.settings`).
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
from starlette.middleware.cors import CORSMiddleware

from model_store.errors import Fc7Error
from model_store.runtime.runner import Runner
from service.api.access.keyring import Keyring
from service.api.access.origin import RequestOrigin
from service.api.archive_upload import Uploads
from service.api.documentation.examples import add_examples
from service.api.downloads.links import DownloadLinks
from service.api.middleware import LingeringClose, Observe
from service.api.oip_codec import HEADER_LENGTH
from service.api.paths import Paths
from service.api.problems import handle_error
from service.api.routes import ROUTERS
from service.api.schemas.problems import InferenceProblem, Problem
from service.api.upload import BodyBudget
from service.inference.loader import MakeRunner
from service.settings import Settings
from service.state import State

_DESCRIPTION = (
    "Classifies images with an AlexNet, and finds similar indexed images by their fc7 features. Images are sent as "
    "bytes, never as URLs. All error responses are application/problem+json, except under /v2, the Open Inference "
    'Protocol, where they are {"error": ...}.'
)


class _Application(FastAPI):
    """FastAPI with an OpenAPI document that contains examples, and the schemas of errors, which operations refer to."""

    def openapi(self) -> dict[str, Any]:
        """Return the OpenAPI document."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        document = super().openapi()
        errors = {model.__name__: model.model_json_schema() for model in (InferenceProblem, Problem)}
        document["components"]["schemas"] = dict(sorted((document["components"]["schemas"] | errors).items()))
        add_examples(document)
        return document


def create_app(
    settings: Settings, *, make_runner: MakeRunner = Runner, lost_log_lines: Callable[[], int] = lambda: 0
) -> FastAPI:
    """Return the application. Its lifespan opens the model and the index; it raises Fc7Error if it must not start.

    make_runner: creates the Runner of a version (tests pass a subclass). lost_log_lines: returns how many log lines
    were lost, for the metrics. Raises KeysFileError, SettingError.
    """
    state = State(settings, make_runner, lost_log_lines)
    keyring = Keyring(settings, state.log, lambda reason: state.metrics.key_failures.labels(reason).inc())

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        await asyncio.to_thread(state.open)
        watcher = asyncio.create_task(keyring.watch())
        try:
            yield
        finally:
            watcher.cancel()
            state.drain()
            await asyncio.to_thread(state.close)

    app = _Application(
        title="fc7",
        version=version("fc7"),
        description=_DESCRIPTION,
        lifespan=lifespan,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,  # `Paths` answers them; a redirect would lose the body of a POST
        servers=[{"url": settings.root_path}] if settings.root_path else None,
    )
    app.state.fc7 = state
    app.state.keyring = keyring
    app.state.download_links = DownloadLinks()
    app.state.body_budget = BodyBudget(settings.max_buffer_bytes)
    app.state.uploads = Uploads(settings.max_uploads)
    for router in ROUTERS:
        # `include_router` would build each route a second time at the first request (0.4 s), and match requests twice.
        app.router.routes.extend(router.routes)
    app.add_exception_handler(Fc7Error, handle_error)
    app.add_exception_handler(RequestValidationError, handle_error)
    app.add_exception_handler(HTTPException, handle_error)
    _add_middleware(app, state, keyring)
    return app


def _add_middleware(app: FastAPI, state: State, keyring: Keyring) -> None:
    """Add the middleware. Each one added is outside of those before it."""
    settings = state.settings
    app.add_middleware(Paths, root_path=settings.root_path)
    if settings.allowed_origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=settings.allowed_origins,
            allow_methods=("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE"),
            allow_headers=("*",),  # clients of OpenAI's API and of OpenTelemetry send headers of their own
            expose_headers=("Allow", "ETag", "Location", "Retry-After", "Server-Timing", "X-Request-ID", HEADER_LENGTH),
            allow_private_network=True,
        )
    app.add_middleware(RequestOrigin, settings=settings, keyring=keyring)
    app.add_middleware(LingeringClose)
    app.add_middleware(Observe, state=state)
