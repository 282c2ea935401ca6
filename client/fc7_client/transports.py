"""Carries out the steps of flows over HTTP: `SyncTransport` waits, `AsyncTransport` awaits.

Guarantees: files are read and written in chunks. A downloaded file is complete or absent.
Out of scope: what is sent and what it means (operations), and when it is sent again (retry).
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from itertools import islice
from pathlib import Path
from typing import Any, Final, TypeVar

import httpx

from fc7_client.retry import Retry, exchange
from fc7_client.steps import Flow, Many, Pages, Request, Send, Sleep, Step, Work

T = TypeVar("T")
_CHUNK: Final = 1 << 20  # bytes


class SyncTransport:
    """Runs flows in the calling thread."""

    def __init__(self, http: httpx.Client, retry: Retry) -> None:
        self._http, self._retry = http, retry

    def run(self, flow: Flow[T]) -> T:
        """Carry out the steps of a flow, and return its result."""
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = flow.send(value) if error is None else flow.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            value = error = None
            try:
                value = self._do(step)
            except BaseException as raised:
                error = raised

    def iterate(self, pages: Pages[T]) -> Iterator[T]:
        """Yield the items of all pages."""
        cursor = None
        while True:
            items, cursor = self.run(pages(cursor))
            yield from items
            if cursor is None:
                return

    def _do(self, step: Step) -> Any:
        match step:
            case Request():
                return self.run(exchange(step, self._retry, str(self._http.base_url)))
            case Send(request):
                return self._send(request)
            case Sleep(seconds):
                return time.sleep(seconds)
            case Work(call):
                return call()
            case Many():
                return self._run_many(step)

    def _send(self, request: Request) -> httpx.Response:
        content = _chunks(request.content) if isinstance(request.content, Path) else request.content
        built = self._http.build_request(request.method, request.path, content=content, **_arguments(request))
        response = self._http.send(built, stream=True)
        try:
            if request.target is None or not response.is_success:
                response.read()
            else:
                part = _part(request.target)
                with part.open("wb") as file:
                    for chunk in response.iter_bytes(_CHUNK):
                        file.write(chunk)
                part.replace(request.target)
        finally:
            response.close()
        return response

    def _run_many(self, many: Many) -> None:
        with ThreadPoolExecutor(many.concurrency, "fc7-client") as pool:
            running = {pool.submit(self.run, flow) for flow in islice(many.flows, many.concurrency)}
            while running:
                ended: set[Future[Any]]
                ended, running = wait(running, return_when=FIRST_COMPLETED)
                for each in ended:
                    many.done(each.result())
                running |= {pool.submit(self.run, flow) for flow in islice(many.flows, len(ended))}


class AsyncTransport:
    """Runs flows in the calling task. A step that blocks runs in a thread."""

    def __init__(self, http: httpx.AsyncClient, retry: Retry) -> None:
        self._http, self._retry = http, retry

    async def run(self, flow: Flow[T]) -> T:
        """Carry out the steps of a flow, and return its result."""
        value: Any = None
        error: BaseException | None = None
        while True:
            try:
                step = flow.send(value) if error is None else flow.throw(error)
            except StopIteration as end:
                result: T = end.value
                return result
            value = error = None
            try:
                value = await self._do(step)
            except BaseException as raised:
                error = raised

    async def iterate(self, pages: Pages[T]) -> AsyncIterator[T]:
        """Yield the items of all pages."""
        cursor = None
        while True:
            items, cursor = await self.run(pages(cursor))
            for item in items:
                yield item
            if cursor is None:
                return

    async def _do(self, step: Step) -> Any:
        match step:
            case Request():
                return await self.run(exchange(step, self._retry, str(self._http.base_url)))
            case Send(request):
                return await self._send(request)
            case Sleep(seconds):
                return await asyncio.sleep(seconds)
            case Work(call):
                return await asyncio.to_thread(call)
            case Many():
                return await self._run_many(step)

    async def _send(self, request: Request) -> httpx.Response:
        content = _async_chunks(request.content) if isinstance(request.content, Path) else request.content
        built = self._http.build_request(request.method, request.path, content=content, **_arguments(request))
        response = await self._http.send(built, stream=True)
        try:
            if request.target is None or not response.is_success:
                await response.aread()
            else:
                part = _part(request.target)
                with await asyncio.to_thread(part.open, "wb") as file:
                    async for chunk in response.aiter_bytes(_CHUNK):
                        await asyncio.to_thread(file.write, chunk)
                await asyncio.to_thread(part.replace, request.target)
        finally:
            await response.aclose()
        return response

    async def _run_many(self, many: Many) -> None:
        running = {asyncio.ensure_future(self.run(flow)) for flow in islice(many.flows, many.concurrency)}
        try:
            while running:
                ended, running = await asyncio.wait(running, return_when=asyncio.FIRST_COMPLETED)
                for each in ended:
                    many.done(each.result())
                running |= {asyncio.ensure_future(self.run(flow)) for flow in islice(many.flows, len(ended))}
        except asyncio.CancelledError:
            for each in running:
                each.cancel()
            raise
        finally:
            await asyncio.gather(*running, return_exceptions=True)


def _arguments(request: Request) -> dict[str, Any]:
    """Return the arguments that httpx's synchronous and asynchronous `build_request` share."""
    arguments: dict[str, Any] = {"params": dict(request.params), "headers": _headers(request)}
    if request.files:
        parts = [(name, (file_name, data, "application/octet-stream")) for name, file_name, data in request.files]
        arguments |= {"files": parts, "data": dict(request.fields)}
    return arguments


def _headers(request: Request) -> Mapping[str, str]:
    if isinstance(request.content, Path):
        return {**request.headers, "Content-Length": str(request.content.stat().st_size)}
    return request.headers


def _part(target: Path) -> Path:
    return target.with_name(f".{target.name}.part")


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK):
            yield chunk


async def _async_chunks(path: Path) -> AsyncIterator[bytes]:
    with await asyncio.to_thread(path.open, "rb") as file:
        while chunk := await asyncio.to_thread(file.read, _CHUNK):
            yield chunk
