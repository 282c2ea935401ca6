"""Turns flows into methods that `Client` and `AsyncClient` share.

`@operation` makes a method that returns the flow's result on a `Client`, and an awaitable of it on an `AsyncClient`.
`@listing` makes a method that returns an iterator on a `Client`, and an asynchronous iterator on an `AsyncClient`.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from functools import wraps
from types import MethodType
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

from fc7_client.steps import Flow, Pages
from fc7_client.transports import AsyncTransport, SyncTransport

P = ParamSpec("P")
T = TypeVar("T")


class operation(Generic[P, T]):  # noqa: N801 - a decorator
    """A method of both clients, from a function that returns a flow."""

    def __init__(self, function: Callable[Concatenate[Any, P], Flow[T]]) -> None:
        @wraps(function)
        def method(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
            return client.run(function(client, *args, **kwargs))

        self._method = method

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: SyncTransport, owner: type) -> Callable[P, T]: ...
    @overload
    def __get__(self, client: AsyncTransport, owner: type) -> Callable[P, Awaitable[T]]: ...
    def __get__(self, client: SyncTransport | AsyncTransport | None, owner: type) -> Any:
        """Return the method of a client, or its function."""
        return self._method if client is None else MethodType(self._method, client)


class listing(Generic[P, T]):  # noqa: N801 - a decorator
    """A method of both clients that iterates over all pages, from a function that returns the flow of each page."""

    def __init__(self, function: Callable[Concatenate[Any, P], Pages[T]]) -> None:
        @wraps(function)
        def method(client: Any, *args: P.args, **kwargs: P.kwargs) -> Any:
            return client.iterate(function(client, *args, **kwargs))

        self._method = method

    @overload
    def __get__(self, client: None, owner: type) -> Callable[..., Any]: ...
    @overload
    def __get__(self, client: SyncTransport, owner: type) -> Callable[P, Iterator[T]]: ...
    @overload
    def __get__(self, client: AsyncTransport, owner: type) -> Callable[P, AsyncIterator[T]]: ...
    def __get__(self, client: SyncTransport | AsyncTransport | None, owner: type) -> Any:
        """Return the method of a client, or its function."""
        return self._method if client is None else MethodType(self._method, client)
