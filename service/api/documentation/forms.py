"""The forms of `/docs` that send a request: the parameters, and the body as JSON or as a file."""

from __future__ import annotations

import json
import re
from html import escape
from typing import Any, Final

_ASK_FIRST: Final = ("activate_model", "rollback_model")  # besides those that delete
_PICTURES: Final = "image/*"
_ARCHIVES: Final = ".zip,.tar,.gz,.tgz,.bz2,.tbz2"
_ROWS: Final = 12


def marked_text(text: str) -> str:
    """Return text for HTML, with the parts in backticks as code."""
    return re.sub(r"`([^`]+)`", r"<code>\1</code>", escape(text))


def form(method: str, path: str, operation: dict[str, Any]) -> str:
    """Return the form that sends an operation. `web/docs.js` reads its data attributes."""
    name, entries = operation["operationId"], operation.get("parameters", [])
    asks = " data-ask" if method == "DELETE" or name in _ASK_FIRST else ""
    heading = "<h3>Parameters</h3>" if entries else ""
    return (
        f'<form class=send data-method={method} data-path="{escape(path)}"{asks}>{heading}'
        f"{''.join(_parameter(name, entry) for entry in entries)}{_body(operation)}"
        f'<p class=row><button class="small primary" aria-label="Send {method} {escape(path)}">Send</button>'
        "<span class=help role=status></span></p><div class=result hidden></div></form>"
    )


def _parameter(operation: str, entry: dict[str, Any]) -> str:
    """Return the field of a parameter."""
    name, place = escape(entry["name"]), entry["in"]
    required = ", required" if entry.get("required") else ""
    mark = f" required placeholder='{escape(str(entry['example']))}'" if required else ""
    return (
        f"<p><label for='{operation}-{name}'><code>{name}</code> ({place}{required})</label> "
        f"<input id='{operation}-{name}' name='{name}' data-in={place} autocomplete=off spellcheck=false{mark}> "
        f"<span class=help>{marked_text(entry.get('description', ''))}</span></p>"
    )


def _body(operation: dict[str, Any]) -> str:
    """Return the fields of the body: an editor with the example as JSON, a file, or a choice between these."""
    content = operation.get("requestBody", {}).get("content", {})
    example = content.get("application/json", {}).get("example")
    if example is None:
        return ""
    text = json.dumps(example, indent=2, ensure_ascii=False)
    takes_file = _PICTURES in content or "application/zip" in content
    hidden = " hidden disabled" if takes_file else ""
    rows = min(text.count("\n") + 2, _ROWS)
    attributes = f"data-body=json aria-label='Body as JSON' spellcheck=false rows={rows}{hidden}"
    editor = f"<textarea {attributes}>{escape(text)}</textarea>"
    if not takes_file:
        return f"<h3>Body</h3>{editor}"
    what, accept = ("Picture", _PICTURES) if _PICTURES in content else ("Archive", _ARCHIVES)
    parts = content.get("multipart/form-data", {}).get("schema", {}).get("properties", {})
    several = " multiple" if parts.get("file", {}).get("type") == "array" else ""
    return (
        f"<h3>Body</h3><p class=row><select class=body aria-label='Kind of body'><option value=file>{what}</option>"
        "<option value=json>JSON</option></select> "
        f"<input type=file data-body=file aria-label='{what} file' accept='{accept}' required{several}></p>{editor}"
    )
