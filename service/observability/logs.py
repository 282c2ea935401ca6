"""Structured logs: one line per request or event, as JSON or text.

Guarantees: no line contains images, keys or request bodies. Warnings and errors of libraries are logged in the same
format.
Out of scope: configuring logging at import. Only `configure_process` does so, for the `serve` command.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog


def make_logger(log_format: str, level: str, stream: TextIO | None = None) -> Any:
    """Return a logger that writes events of at least `level` to `stream`, as `log_format` ("json" or "text").

    stream: standard output by default. The return type is Any because structlog's loggers share no static type.
    """
    stream = stream or sys.stdout
    return structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=_processors(log_format, stream),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )


def configure_process(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Log everything in this process in this format, including the warnings of libraries."""
    stream = stream or sys.stdout
    structlog.configure(
        processors=_processors(log_format, stream),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=structlog.PrintLoggerFactory(stream),
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward(make_logger(log_format, level, stream))]
    root.setLevel(logging.WARNING)


def _processors(log_format: str, stream: TextIO) -> list[Any]:
    first = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    if log_format == "json":
        return [*first, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return [*first, structlog.dev.ConsoleRenderer(colors=stream.isatty())]


class _Forward(logging.Handler):
    def __init__(self, logger: Any) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        log = self._logger.error if record.levelno >= logging.ERROR else self._logger.warning
        log("library", source=record.name, message=record.getMessage(), exc_info=record.exc_info)
