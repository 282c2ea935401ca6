"""An application that reads an image and answers without decoding it: the cost of HTTP with FastAPI and uvicorn.

Usage: python -m benchmarks.serving.empty_app PORT
"""

from __future__ import annotations

import sys

import uvicorn
from fastapi import FastAPI, Request, Response

_ANSWER = b'{"results": []}'


def make_app() -> FastAPI:
    """Return the application; it answers `POST /empty` and `GET /ready`."""
    app = FastAPI()

    @app.post("/empty")
    async def empty(request: Request) -> Response:
        await request.body()
        return Response(_ANSWER, media_type="application/json")

    @app.get("/ready")
    async def ready() -> None:
        return None

    return app


if __name__ == "__main__":
    uvicorn.run(
        make_app(), port=int(sys.argv[1]), loop="uvloop", http="httptools", log_level="warning", access_log=False
    )
