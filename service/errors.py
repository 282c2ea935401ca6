"""Errors of this room.

Fc7Error
└── ServiceError
    └── SettingError     a setting with a value that cannot be
"""

from __future__ import annotations

from model_store.errors import Fc7Error


class ServiceError(Fc7Error):
    """Base of the errors of the service."""


class SettingError(ServiceError):
    """A setting whose value cannot be: the service does not start with it."""

    def __init__(self, variable: str, value: str, expected: str) -> None:
        super().__init__(variable, value, expected)
        self.variable, self.value, self.expected = variable, value, expected

    def __str__(self) -> str:
        return f"{self.variable}={self.value}: expected {self.expected}"
