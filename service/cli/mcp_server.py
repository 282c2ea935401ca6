"""`fc7 mcp`: a Model Context Protocol server, with which an AI assistant classifies, searches and labels images.

It speaks MCP on standard input and output, and asks a running fc7 server over HTTP.

Guarantees: nothing but MCP messages is written to standard output. The server's explanation of an error reaches the
assistant.
Out of scope: files on other machines; the paths are those of the machine where the assistant started this command.
References: https://modelcontextprotocol.io/specification
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote, urlencode

from pydantic import Field

from model_store.errors import Fc7Error, MissingExtraError
from service.cli import console
from service.cli.options import Key, Url
from service.cli.server_client import ServerClient
from service.settings import load_settings

if TYPE_CHECKING:
    from mcp.server import MCPServer

_INSTRUCTIONS = (
    "Classify photographs with the model of an fc7 server, find similar indexed images, and label indexed images. "
    "Images are named by the path of a file, or by the key under which they are indexed."
)

ImagePath = Annotated[str, Field(description="Path of an image file on this machine.")]
Conditions = Annotated[
    list[str] | None,
    Field(description="Only images whose metadata match all conditions, such as label:cat or year>=2020."),
]


def mcp(*, url: Url = None, key: Key = None) -> None:
    """Serve the tools classify, search and label to an AI assistant (MCP on standard input and output)."""
    client = ServerClient(url, key, load_settings())
    server = make_server(client)
    console.say(f"Serving the tools classify, search and label of {client.url} on standard input and output.")
    if sys.stdin.isatty():
        console.next_step('add the command "fc7 mcp" to the MCP servers of your assistant; Ctrl-C stops this one')
    server.run("stdio")


def make_server(client: ServerClient) -> MCPServer[Any]:
    """Return the MCP server whose tools ask this fc7 server. Raises MissingExtraError."""
    try:
        # Imported here because the extra is optional, and the SDK takes a second.
        from mcp.server import MCPServer  # noqa: PLC0415
        from mcp.types import ToolAnnotations  # noqa: PLC0415
    except ModuleNotFoundError as error:
        raise MissingExtraError("mcp", "mcp") from error

    server: MCPServer[Any] = MCPServer("fc7", instructions=_INSTRUCTIONS, log_level="WARNING")
    tools, reads = _Tools(client), ToolAnnotations(read_only_hint=True, open_world_hint=False)
    server.tool(annotations=reads)(tools.classify)
    server.tool(annotations=reads)(tools.search)
    server.tool(annotations=ToolAnnotations(destructive_hint=True, idempotent_hint=True))(tools.label)
    return server


class _Tools:
    """The tools. Their docstrings and annotations are what the assistant reads."""

    def __init__(self, client: ServerClient) -> None:
        self._client = client

    def classify(
        self, path: ImagePath, k: Annotated[int, Field(ge=1, description="Number of classes.")] = 5
    ) -> dict[str, Any]:
        """Return the most probable classes of an image, and whether it is unlike all images of the training."""
        # The server rejects a k above the number of classes of its model.
        answer = self._ask("POST", "/v1/classify", _read(path), "application/octet-stream")
        result = answer["results"][0]
        if k > len(result["predictions"]):
            answer = self._ask("POST", f"/v1/classify?k={k}", _read(path), "application/octet-stream")
            result = answer["results"][0]
        return {"model": _name(answer), **result, "predictions": result["predictions"][:k]}

    def search(
        self,
        path: Annotated[str | None, Field(description="Path of an image file on this machine.")] = None,
        key: Annotated[str | None, Field(description="Key of an indexed image, instead of a path.")] = None,
        k: Annotated[int, Field(ge=1, le=100, description="Number of images.")] = 6,
        where: Conditions = None,
    ) -> dict[str, Any]:
        """Return the indexed images that look most like an image, nearest first, with distance and metadata."""
        query = urlencode({"k": k, "where": where or []}, doseq=True)
        if (path is None) == (key is None):
            raise _tool_error("Give either the path of an image or the key of an indexed one.")
        if path is not None:
            answer = self._ask("POST", f"/v1/search?{query}", _read(path), "application/octet-stream")
        else:
            answer = self._ask("GET", f"/v1/images/{quote(str(key), safe='')}/similar?{query}")
        return {"model": _name(answer), "mode": answer["mode"], **answer["results"][0]}

    def label(
        self,
        keys: Annotated[list[str], Field(min_length=1, description="Keys of the indexed images.")],
        label: Annotated[str | None, Field(description="The label; null removes it.")],
        field: Annotated[str, Field(description="Metadata field of the label.")] = "label",
    ) -> dict[str, Any]:
        """Label indexed images. Returns how many were named, and how many of them had another label or none."""
        body = json.dumps({"keys": keys, "metadata": {field: label}}).encode()
        changed: dict[str, Any] = self._ask("PATCH", "/v1/images", body)
        return changed

    def _ask(
        self, method: str, path: str, body: bytes | None = None, content_type: str = "application/json"
    ) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = self._client.send(method, path, body, content_type)
        except Fc7Error as error:
            raise _tool_error(str(error)) from error
        return answer


def _read(path: str) -> bytes:
    try:
        return Path(path).expanduser().read_bytes()
    except OSError as error:
        raise _tool_error(f"{path} cannot be read: {error.strerror}. Give the path of an image file.") from error


def _name(answer: dict[str, Any]) -> str:
    return f"{answer['model']['name']}:{answer['model']['version']}"


def _tool_error(text: str) -> Exception:
    """Return the exception whose text reaches the assistant."""
    from mcp.server.mcpserver.exceptions import ToolError  # noqa: PLC0415

    return ToolError(text)
