"""One line a request and one an event, as JSON or as text, on standard output.

Promises: no picture, no key, no body in any line; what libraries warn of becomes a line of the same form.
Does not: configure logging for the process, except `configure_process`, which the `serve` command calls.
"""

from __future__ import annotations

import logging
import sys
from typing import Any, TextIO

import structlog

_LEVELS = {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}


def make_logger(log_format: str, level: str, stream: TextIO | None = None) -> Any:
    """Return a logger that writes `log_format` ("json" or "text") lines of at least `level` to `stream`.

    Any: structlog's bound loggers have no common static type.
    """
    stream = stream or sys.stdout
    return structlog.wrap_logger(
        structlog.PrintLogger(stream),
        processors=_processors(log_format, stream),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
    )


def configure_process(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Let all that logs in this process write lines of the same form. For the process that only serves."""
    stream = stream or sys.stdout
    structlog.configure(
        processors=_processors(log_format, stream),
        wrapper_class=structlog.make_filtering_bound_logger(_LEVELS[level]),
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
