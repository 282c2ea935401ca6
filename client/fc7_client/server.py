"""Operations on the server: its models, its index and its state."""

from __future__ import annotations

from fc7_client.binding import operation
from fc7_client.models import Activation, IndexInfo, ModelInfo, Models, Ready
from fc7_client.requests import ask, parameters, segment
from fc7_client.steps import Flow, Request


class ServerOperations:
    """Operations on the server."""

    @operation
    def models(self) -> Flow[list[ModelInfo]]:
        """Return the published versions."""
        return (yield from ask(Request("GET", "/v1/models"), Models)).models

    @operation
    def activate(self, name: str, version: int, *, force: bool | None = None) -> Flow[Activation]:
        """Make a version the active one. force: even if it is no better than always predicting the same class."""
        path = f"/v1/models/{segment(name)}/{version}/activate"
        return (yield from ask(Request("POST", path, params=parameters(force=force), repeatable=False), Activation))

    @operation
    def rollback(self) -> Flow[Activation]:
        """Make the previous version the active one."""
        return (yield from ask(Request("POST", "/v1/models/rollback", repeatable=False), Activation))

    @operation
    def index(self) -> Flow[IndexInfo]:
        """Return the statistics of the index."""
        return (yield from ask(Request("GET", "/v1/index"), IndexInfo))

    @operation
    def ready(self) -> Flow[Ready]:
        """Return what the server serves, as soon as it is ready. Raises UnavailableError if it is not in time."""
        return (yield from ask(Request("GET", "/readyz"), Ready))
