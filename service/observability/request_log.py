"""What a request adds to its log line: number of images, reason of a refusal, time in each stage."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import starlette.types

from service.api_keys import Scope
from service.observability.tracing import Stage


@dataclass(slots=True)
class Notes:
    """What the log line of a request reports. Times are in seconds, of the slowest image.

    key: the name of the request's API key, and scope its scope. audited: the request needs the scope
    write or admin.
    """

    request_id: str
    images: int = 0
    reason: str = ""
    key: str = ""
    scope: Scope | None = None
    audited: bool = False
    decode: float = 0.0
    queue: float = 0.0
    run: float = 0.0
    stages: list[Stage] = field(default_factory=list)

    def stage(self, name: str, seconds: float, ago: float = 0.0) -> None:
        """Record that an image spent `seconds` in a stage that ended `ago` seconds before now."""
        setattr(self, name, max(getattr(self, name), seconds))
        end = time.time_ns() - int(ago * 1e9)
        self.stages.append(Stage(name, end - int(seconds * 1e9), end))


def notes_of(scope: starlette.types.Scope) -> Notes:
    """Return the notes of the request with this scope."""
    notes: Notes = scope["fc7.notes"]
    return notes
