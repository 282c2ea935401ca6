"""`/` and `/web/...`: the web page and its files.

Guarantees: nothing is loaded from other servers; the Content-Security-Policy forbids it too. These paths require no API
key: the page asks for one if the API requires it.
Out of scope: build steps, templates, minification.
"""

from __future__ import annotations

from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

import service
from service.api.routes.common import revalidated

router = APIRouter(include_in_schema=False)

_WEB = Path(service.__file__).parent / "web"
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


@router.get("/")
def page(request: Request) -> Response:
    """Return the page."""
    return _file(request, "index.html")


@router.get("/web/{name:path}")
def web(request: Request, name: str) -> Response:
    """Return a file of the page."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    # Comparing with what exists, instead of joining the name, keeps `..` inside the folder.
    files = (path for path in _WEB.rglob("*") if path.suffix in _TYPES)
    path = next((path for path in files if path.relative_to(_WEB).as_posix() == name), None)
    if path is None:
        raise HTTPException(404, f"The page has no file {name[:80]!r}.")
    return revalidated(request, path.read_bytes(), _TYPES[path.suffix])
