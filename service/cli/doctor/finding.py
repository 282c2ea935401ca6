"""The result of one check."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Status = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found. fix: what to do; "" if nothing has to be done."""

    check: str
    status: Status
    detail: str
    fix: str = ""

    @classmethod
    def ok(cls, check: str, detail: str) -> Finding:
        """Return a finding that needs no action."""
        return cls(check, "ok", detail)

    @classmethod
    def warning(cls, check: str, detail: str, fix: str) -> Finding:
        """Return a finding that makes the service slower or less safe, but does not stop it."""
        return cls(check, "warning", detail, fix)

    @classmethod
    def problem(cls, check: str, detail: str, fix: str) -> Finding:
        """Return a finding that stops the service."""
        return cls(check, "problem", detail, fix)
