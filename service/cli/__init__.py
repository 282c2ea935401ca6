"""The `fc7` command line: one module for each group of commands."""

from __future__ import annotations

import sys

try:
    from service.cli.main import main
except KeyboardInterrupt:  # the imports take a second
    sys.exit(130)

__all__ = ["main"]
