"""`fc7 mcp` as a process, driven by the client of the MCP SDK over standard input and output."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters, stdio_client

from tests.service.cli.helpers import SCRIPT, invoke, run
from tests.support import pictures
from tests.support.server import ThreadServer, thread_server

Use = Callable[[Client], Awaitable[Any]]


def use(server_url: str, work: Use, tmp_path: Path, *options: str, **variables: str) -> Any:
    """Run `fc7 mcp` and let `work` use it; return what it returns. Its standard error is in stderr.txt."""
    environment = {"PYTHONPATH": os.pathsep.join(sys.path), **variables}
    arguments = ["-c", SCRIPT, "mcp", "--url", server_url, *options] if server_url else ["-c", SCRIPT, "mcp"]
    command = StdioServerParameters(command=sys.executable, args=arguments, env=environment)

    async def connect() -> Any:
        with (tmp_path / "stderr.txt").open("w") as errors:
            async with Client(stdio_client(command, errlog=errors)) as client:
                return await work(client)

    return asyncio.run(asyncio.wait_for(connect(), 60))


@pytest.fixture
def indexed(home: Path) -> Any:
    with thread_server(home) as server:
        for number in range(4):
            server.client.put(f"/v1/images/folder%2F{number}", content=pictures.jpeg(number))
        yield server


def test_an_assistant_classifies_searches_and_labels(indexed: ThreadServer, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(pictures.jpeg(1))

    async def work(client: Client) -> list[Any]:
        tools = {tool.name: tool for tool in (await client.list_tools()).tools}
        assert set(tools) == {"classify", "search", "label"}
        assert "path" in tools["classify"].input_schema["required"]
        calls: list[tuple[str, dict[str, Any]]] = [
            ("classify", {"path": str(photo), "k": 2}),
            ("classify", {"path": str(photo), "k": 6}),
            ("search", {"path": str(photo), "k": 1}),
            ("label", {"keys": ["folder/1", "folder/2"], "label": "cat"}),
            ("search", {"key": "folder/1", "where": ["label:cat"]}),
        ]
        answers = []
        for name, arguments in calls:
            result = await client.call_tool(name, arguments)
            assert not result.is_error, result
            answers.append(result.structured_content)
        return answers

    two, six, nearest, labelled, similar = use(indexed.url, work, tmp_path)
    expected = indexed.client.post("/v1/classify?k=6", content=pictures.jpeg(1)).json()["results"][0]["predictions"]
    assert (two["model"], two["predictions"], six["predictions"]) == ("tiny:1", expected[:2], expected)
    assert [near["key"] for near in nearest["neighbours"]] == ["folder/1"]
    assert labelled == {"matched": 2, "changed": 2}
    assert [near["key"] for near in similar["neighbours"]] == ["folder/2"]
    assert indexed.client.get("/v1/images/folder%2F1").json()["metadata"] == {"label": "cat"}
    assert "Serving the tools" in (tmp_path / "stderr.txt").read_text()


def test_errors_reach_the_assistant(indexed: ThreadServer, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no image")

    async def work(client: Client) -> list[str]:
        calls: list[tuple[str, dict[str, Any]]] = [
            ("classify", {"path": str(tmp_path / "missing.jpg")}),
            ("classify", {"path": str(tmp_path / "notes.txt")}),
            ("classify", {"path": str(tmp_path / "notes.txt"), "k": 0}),
            ("search", {}),
            ("search", {"key": "nowhere"}),
            ("label", {"keys": ["nowhere"], "label": "cat"}),
        ]
        results = [await client.call_tool(name, arguments) for name, arguments in calls]
        assert all(result.is_error for result in results)
        return [result.content[0].text for result in results]  # type: ignore[union-attr]

    texts = use(indexed.url, work, tmp_path)
    parts = ["missing.jpg cannot be read", "image", "greater than or equal to 1", "either", "nowhere", "nowhere"]
    assert [part for text, part in zip(texts, parts, strict=True) if part not in text] == []


def test_a_server_that_is_gone_is_explained_and_found_again(home: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(pictures.jpeg(1))
    with thread_server(home) as server:
        pass

    async def work(client: Client) -> tuple[str, bool]:
        gone = await client.call_tool("classify", {"path": str(photo)})
        with thread_server(home, port=server.port):
            back = await client.call_tool("classify", {"path": str(photo)})
        return gone.content[0].text, bool(back.is_error)  # type: ignore[union-attr]

    text, failed = use("", work, tmp_path, FC7_PORT=str(server.port))
    assert "fc7 serve" in text
    assert not failed


def test_a_wrong_address_and_a_missing_package_are_explained(home: Path) -> None:
    assert "is not the address of a server" in str(invoke(home, "mcp", "--url", "ftp://host").exception)
    hidden = f"import sys; sys.modules['mcp.server'] = None; sys.modules['mcp'] = None; {SCRIPT}"
    ended = run("mcp", script=hidden)
    assert ended.returncode == 1
    assert "pip install 'fc7[mcp]'" in ended.stderr
