"""The module `openvino`, ready for several threads. Importing this raises ImportError if it is not installed.

Python lets one thread import a module while others wait, so what stands here is done once and by one thread.
"""

from __future__ import annotations

import sys
from typing import Any

# Importing the converter sends an event to Google Analytics, and takes 0.2 s.
_blocked: dict[str, Any] = sys.modules
_blocked.setdefault("openvino.tools.ovc", None)

import openvino  # noqa: E402

__all__ = ["openvino"]

# The first conversion of a type fills a table and gives up the GIL meanwhile. If two threads do it at the same time,
# each waits for the other one, and the whole process hangs (OpenVINO 2026.4.1).
openvino.Type.f32.to_dtype()
