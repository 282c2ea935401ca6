"""The `fc7` command line: one module for each group of commands."""

from __future__ import annotations

from service.cli.main import main

__all__ = ["main"]
