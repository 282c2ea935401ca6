"""`/` and `/web/...`: the web page and its files.

Guarantees: nothing is loaded from other servers; the Content-Security-Policy forbids it too. These paths require no API
key: the page asks for one if the API requires it.
Out of scope: build steps, templates, minification.
"""

from __future__ import annotations

import re
from pathlib import Path

from fastapi import APIRouter, Request, Response
from starlette.exceptions import HTTPException

import service
from service.api.routes.common import revalidated

router = APIRouter(include_in_schema=False)

_WEB = Path(service.__file__).parent / "web"
_TYPES = {"html": "text/html", "js": "text/javascript", "css": "text/css"}
_NAME = re.compile(r"(?:[a-z]+/)?[a-z]+\.(html|js|css)")  # no name that matches leaves the folder


@router.get("/")
def page(request: Request) -> Response:
    """Return the page."""
    return _file(request, "index.html")


@router.get("/web/{name:path}")
def web(request: Request, name: str) -> Response:
    """Return a file of the page."""
    return _file(request, name)


def _file(request: Request, name: str) -> Response:
    found = _NAME.fullmatch(name)
    try:
        content = (_WEB / name).read_bytes() if found else None
    except (FileNotFoundError, NotADirectoryError):
        content = None
    if found is None or content is None:
        raise HTTPException(404, f"The page has no file {name[:80]!r}.")
    return revalidated(request, content, _TYPES[found[1]])
