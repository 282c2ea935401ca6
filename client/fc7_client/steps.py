"""Steps of operations: what an operation asks the client to do, without saying whether it waits or awaits.

An operation is a generator, a `Flow`. It yields steps, gets their results, and returns the answer. `Client` and
`AsyncClient` only differ in how they carry out the steps, so that every operation is written once.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeAlias, TypeVar

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Request:
    """A step: send an HTTP request, with retries. The result is the `httpx.Response`; an error status is raised.

    path: below the URL of the server. content: the body; a path is streamed from its file. files: parts of a
    multipart body, each with its name, file name and content; fields: its other parts. target: the file that gets the
    body of the answer. repeatable: sending it twice has the same effect as once, so that it may be sent again if the
    connection breaks.
    """

    method: str
    path: str
    params: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)
    content: bytes | Path | None = None
    files: Sequence[tuple[str, str, bytes]] = ()
    fields: Mapping[str, str] = field(default_factory=dict)
    target: Path | None = None
    repeatable: bool = True


@dataclass(frozen=True, slots=True)
class Send:
    """A step: send a request once. The result is the response, with any status; raises httpx.TransportError."""

    request: Request


@dataclass(frozen=True, slots=True)
class Sleep:
    """A step: wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Work:
    """A step: call a function that blocks, such as one that reads a file. The result is what it returns."""

    call: Callable[[], Any]


@dataclass(frozen=True, slots=True)
class Many:
    """A step: run flows, at most `concurrency` at the same time, and pass each result to `done` as it arrives.

    `done` is never called twice at the same time. After an error no further flow is started, those that run are
    awaited, and the error is raised.
    """

    flows: Iterator[Flow[Any]]
    concurrency: int
    done: Callable[[Any], object]


Step: TypeAlias = Request | Send | Sleep | Work | Many
Flow: TypeAlias = Generator[Step, Any, T]
Pages: TypeAlias = Callable[[Any], Flow[tuple[Sequence[T], Any]]]
"""Returns the flow of the page at a cursor, which returns the items and the next cursor. None: first or no page."""
