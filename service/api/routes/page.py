"""`/`, `/web/...` and `/docs`: the web page, its files, and the API documentation.

Guarantees: nothing is loaded from other servers; the Content-Security-Policy forbids it too. These paths require no API
key: the page asks for one if the API requires it.
Out of scope: build steps, templates, minification. `/docs` is generated from the OpenAPI document.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse
from starlette.exceptions import HTTPException

import service
from service.api.paths import TRAILING_SLASH
from service.api.routes.common import revalidated

router = APIRouter(include_in_schema=False)

_WEB = Path(service.__file__).parent / "web"
_VIEWS = (("Ask", ""), ("Browse", "#/browse"), ("Map", "#/map"), ("Model", "#/model"), ("Jobs", "#/jobs"))
_TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css"}


@router.get("/")
def page(request: Request) -> Response:
    """Return the page."""
    return _file(request, "index.html")


@router.get("/web/{name:path}")
def web(request: Request, name: str) -> Response:
    """Return a file of the page."""
    return _file(request, name)


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Return a page that describes every operation of the OpenAPI document."""
    document = request.app.openapi()
    info = document["info"]
    up = "../" if request.scope.get(TRAILING_SLASH) else ""  # links are relative: a proxy may add a prefix
    operations = [
        _operation(method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    home = up or "./"
    views = "".join(f"<li><a href={home}{fragment}>{name}</a></li>" for name, fragment in _VIEWS)
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>API – {escape(info['title'])}</title><link rel=stylesheet href={up}web/styles/base.css>"
        f"<link rel=icon href=data:,><script src={up}web/theme.js></script><body class=documentation>"
        f"<header class=masthead><p class=brand><a href={home}>{escape(info['title'])}</a></p>"
        f"<nav aria-label=Views><ul class=views>{views}<li><a href={up}docs aria-current=page>API</a></li></ul></nav>"
        f"</header><main><h1>{escape(info['title'])} API</h1><p>{escape(info['description'])}</p>"
        f"<p>For programs: <a href={up}openapi.json>/openapi.json</a></p>{_contents(document)}"
        f"{''.join(operations)}</main>"
    )


def _contents(document: dict[str, Any]) -> str:
    """Return a list of links to all operations."""
    links = "".join(
        f'<li><a href="#{escape(operation["operationId"])}">{method.upper()} {escape(path)}</a></li>'
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    )
    return f"<nav aria-label=Operations><ul class=contents>{links}</ul></nav>"


def _text(text: str) -> str:
    """Return text for HTML, with the parts in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def _operation(method: str, path: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(entry['name'])}</code> ({escape(entry['in'])}): {_text(entry.get('description', ''))}</li>"
        for entry in operation.get("parameters", [])
    )
    bodies = ", ".join(escape(kind) for kind in operation.get("requestBody", {}).get("content", {}))
    answers = "".join(
        f"<li><code>{escape(status)}</code> {_text(answer.get('description', ''))}</li>"
        for status, answer in operation.get("responses", {}).items()
    )
    return (
        f"<section id='{escape(operation['operationId'])}'><h2><code>{method.upper()} {escape(path)}</code></h2>"
        f"<p><strong>{escape(operation['summary'])}.</strong> {_text(operation.get('description', ''))}</p>"
        + (f"<p>Parameters</p><ul>{parameters}</ul>" if parameters else "")
        + (f"<p>Body: {bodies}</p>" if bodies else "")
        + f"<p>Responses</p><ul>{answers}</ul></section>"
    )


def _file(request: Request, name: str) -> Response:
    # Comparing with what exists, instead of joining the name, keeps `..` inside the folder.
    files = (path for path in _WEB.rglob("*") if path.suffix in _TYPES)
    path = next((path for path in files if path.relative_to(_WEB).as_posix() == name), None)
    if path is None:
        raise HTTPException(404, f"The page has no file {name[:80]!r}.")
    return revalidated(request, path.read_bytes(), _TYPES[path.suffix])
