"""Structured logs: one line per request or event, as JSON or text.

Guarantees: no line contains images, keys or request bodies. Warnings and errors of libraries are logged in the same
format. A client cannot add lines or terminal commands: control characters are escaped.
Out of scope: configuring logging at import. Only `configure_process` does so, for the `serve` command. Writing without
blocking (see `background_stream`).
"""

from __future__ import annotations

import io
import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any, TextIO

import structlog

# C0 and C1 controls, line and paragraph separators, and the marks that change the direction of text.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def make_logger(log_format: str, level: str, stream: TextIO | None = None) -> Any:
    """Return a logger that writes events of at least `level` to `stream`, as `log_format` ("json" or "text").

    stream: standard output by default. The return type is Any because structlog's loggers share no static type.
    """
    stream = stream or sys.stdout
    return structlog.wrap_logger(
        _LineLogger(stream),
        processors=_processors(log_format, stream),
        wrapper_class=structlog.make_filtering_bound_logger(level),
    )


def configure_process(log_format: str, level: str, stream: TextIO | None = None) -> None:
    """Log everything in this process in this format, including the warnings of Python and of libraries."""
    stream = stream or sys.stdout
    structlog.configure(
        processors=_processors(log_format, stream),
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: _LineLogger(stream),
    )
    root = logging.getLogger()
    root.handlers[:] = [_Forward(make_logger(log_format, level, stream))]
    root.setLevel(logging.WARNING)
    logging.captureWarnings(True)


def lost_line(log_format: str, lines: int) -> str:
    """Return the log line that reports lost lines."""
    buffer = io.StringIO()
    make_logger(log_format, "warning", buffer).warning("log lines lost", lines=lines)
    return buffer.getvalue()


def _processors(log_format: str, stream: TextIO) -> list[Any]:
    first = [structlog.processors.add_log_level, structlog.processors.TimeStamper(fmt="iso", utc=True)]
    if log_format == "json":
        return [*first, structlog.processors.format_exc_info, structlog.processors.JSONRenderer(default=str)]
    return [*first, _escape_control_characters, structlog.dev.ConsoleRenderer(colors=stream.isatty())]


def _escape_control_characters(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    for name, value in event.items():
        if isinstance(value, str):
            event[name] = _CONTROL.sub(lambda match: ascii(match.group())[1:-1], value)
    return event


class _LineLogger:
    """Writes each event in one call. structlog's own loggers hold a lock meanwhile, see `background_stream`."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def msg(self, line: str) -> None:
        self._stream.write(line + "\n")

    debug = info = warning = error = critical = exception = msg


class _Forward(logging.Handler):
    def __init__(self, logger: Any) -> None:
        super().__init__(logging.WARNING)
        self._logger = logger

    def emit(self, record: logging.LogRecord) -> None:
        log = self._logger.error if record.levelno >= logging.ERROR else self._logger.warning
        log("library", source=record.name, message=record.getMessage(), exc_info=record.exc_info)
