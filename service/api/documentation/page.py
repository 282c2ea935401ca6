"""`/docs`: every operation of the OpenAPI document, with an example request and answer, and a form that sends it.

Guarantees: nothing is loaded from other servers. The page requires no API key; requests that it sends use that of the
browser tab (`web/docs.js`). Its links are relative, so that it works below a path prefix. A request that deletes, or
that changes which version answers, is sent only after a question.
Out of scope: the forms themselves (`service.api.documentation.forms`).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from http import HTTPStatus
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from service.api.documentation.forms import form, marked_text
from service.api.paths import TRAILING_SLASH
from service.api.problems import STATUS

router = APIRouter(include_in_schema=False)

_VIEWS = (("Ask", ""), ("Browse", "#/browse"), ("Map", "#/map"), ("Model", "#/model"), ("Jobs", "#/jobs"))
_ADDRESS = "http://localhost:8000"  # docs.js writes the real address
_FILES = {"image/*": ("cat.jpg", "image/jpeg"), "application/zip": ("pictures.zip", "application/zip")}


@router.get("/docs")
async def docs(request: Request) -> HTMLResponse:
    """Return a page that describes every operation of the OpenAPI document."""
    document = request.app.openapi()
    info = document["info"]
    up = "../" if request.scope.get(TRAILING_SLASH) else ""
    operations = list(_operations(document))
    home = up or "./"
    views = "".join(f"<li><a href={home}{fragment}>{name}</a></li>" for name, fragment in _VIEWS)
    contents = "".join(
        f'<li><a href="#{operation["operationId"]}">{method} {escape(path)}</a></li>'
        for method, path, operation in operations
    )
    return HTMLResponse(
        "<!doctype html><html lang=en><meta charset=utf-8><meta name=viewport content='width=device-width'>"
        f"<title>API – {escape(info['title'])}</title><link rel=stylesheet href={up}web/styles/base.css>"
        f"<link rel=icon href=data:,><script src={up}web/theme.js></script>"
        f"<script type=module src={up}web/docs.js></script><body class=documentation data-home={home}>"
        f"<header class=masthead><p class=brand><a href={home}>{escape(info['title'])}</a></p>"
        f"<nav aria-label=Views><ul class=views>{views}<li><a href={up}docs aria-current=page>API</a></li></ul></nav>"
        f"</header><main><h1>{escape(info['title'])} API</h1><p>{escape(info['description'])}</p>"
        f"<p>For programs: <a href={up}openapi.json>/openapi.json</a></p>{_KEY}"
        f'<nav aria-label=Operations><ul class=contents>{contents}<li><a href="#errors">Errors</a></li></ul></nav>'
        f"{''.join(_section(*each) for each in operations)}{_errors(operations)}</main>"
    )


_KEY = (
    "<form id=key-form class=row><label for=key>API key for the requests that this page sends</label>"
    "<input id=key type=password autocomplete=off spellcheck=false><button class=small>Use this key</button>"
    "<span id=key-status class=help role=status></span></form>"
    "<p class=help>The key is stored only in this browser tab. If the server requires none, leave out the header "
    "<code>Authorization</code> of the examples.</p>"
)


def _operations(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Yield the method, the path and the description of each operation."""
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            yield method.upper(), path, operation


def _section(method: str, path: str, operation: dict[str, Any]) -> str:
    """Return the description of an operation."""
    bodies = ", ".join(escape(kind) for kind in operation.get("requestBody", {}).get("content", {}))
    statuses = "".join(
        f"<li><code>{escape(status)}</code> {marked_text(answer.get('description', ''))}</li>"
        for status, answer in operation["responses"].items()
        if status < "400"
    )
    failures = (status for status in operation["responses"] if status >= "400")
    errors = ", ".join(f'<a href="#error-{status}">{status}</a>' for status in failures)
    name = operation["operationId"]
    return (
        f"<section id='{name}'><h2><code>{method} {escape(path)}</code></h2>"
        f"<p><strong>{escape(operation['summary'])}.</strong> {marked_text(operation.get('description', ''))}</p>"
        + (f"<p>Body: {bodies}</p>" if bodies else "")
        + f"<h3>Request</h3><pre class=request tabindex=0>{escape(_curl(method, path, operation))}</pre>"
        + f"<h3>Answer</h3><ul>{statuses}</ul>{_answer(operation)}"
        + (f"<p>Errors: {errors}</p>" if errors else "")
        + form(method, path, operation)
        + "</section>"
    )


def _curl(method: str, path: str, operation: dict[str, Any]) -> str:
    """Return an example request for a POSIX shell."""
    query = {}
    for entry in operation.get("parameters", []):
        if not entry.get("required"):
            continue
        if entry["in"] == "path":
            path = path.replace(f"{{{entry['name']}}}", quote(str(entry["example"]), safe=""))
        else:
            query[entry["name"]] = entry["example"]
    url = f"{_ADDRESS}{path}" + (f"?{urlencode(query, doseq=True)}" if query else "")
    lines = ["curl" + ("" if method == "GET" else f" -X {method}") + f" '{url}'"]
    if operation.get("security"):
        lines.append('-H "Authorization: Bearer $FC7_API_KEY"')
    content = operation.get("requestBody", {}).get("content", {})
    kind = next((kind for kind in (*_FILES, "application/json") if kind in content), None)
    if kind in _FILES:
        file, media_type = _FILES[kind]
        lines += [f"-H 'Content-Type: {media_type}'", f"--data-binary @{file}"]
        if operation["operationId"] == "add_images":  # the part's file name is the key
            lines[-2:] = ["-F file=@cat.jpg", "-F file=@dog.jpg"]
    elif kind is not None:
        lines += [f"-H 'Content-Type: {kind}'", f"-d '{json.dumps(content[kind]['example'])}'"]
    return " \\\n  ".join(lines)


def _answer(operation: dict[str, Any]) -> str:
    """Return the example of the answer, or the media types of one that is not JSON."""
    for status, answer in operation["responses"].items():
        content = answer.get("content", {})
        if status.startswith("2") and "example" in content.get("application/json", {}):
            text = json.dumps(content["application/json"]["example"], indent=2, ensure_ascii=False)
            return f"<pre tabindex=0>{escape(text)}</pre>"
        if status.startswith("2") and content:
            return f"<p>A file: {', '.join(escape(kind) for kind in content)}</p>"
    return ""


def _errors(operations: list[tuple[str, str, dict[str, Any]]]) -> str:
    """Return the section that explains all errors."""
    words = {
        status: answer["description"]
        for _, _, operation in operations
        for status, answer in operation["responses"].items()
        if status >= "400" and answer["description"] != "Validation Error"
    }
    kinds = {kind.slug: kind for kind in STATUS.values()}
    groups = "".join(
        f"<h3 id=error-{status}>{status} {HTTPStatus(int(status)).phrase}</h3><p>{marked_text(words[status])}</p><ul>"
        + "".join(
            f"<li><code>{kind.slug}</code> {escape(kind.title)}</li>"
            for kind in kinds.values()
            if str(kind.status) == status
        )
        + "</ul>"
        for status in sorted(words)
    )
    example = {"type": "urn:fc7:problem:no-such-image", "title": "Image not found", "status": 404, "detail": "..."}
    return (
        "<section id=errors><h2>Errors</h2><p>All operations answer errors in the same form, as "
        "<code>application/problem+json</code> (RFC 9457). <code>type</code> ends with one of the names below, "
        "<code>detail</code> says what is wrong and how to fix it. Below <code>/v2</code>, the Open Inference Protocol "
        f"requires <code>{{&quot;error&quot;: detail}}</code> instead.</p><pre tabindex=0>"
        f"{escape(json.dumps(example, indent=2))}</pre>{groups}</section>"
    )
