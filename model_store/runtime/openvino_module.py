"""The module `openvino`, ready for several threads. Importing this raises ImportError if it is not installed.

Python lets one thread import a module while others wait, so what stands here is done once and by one thread.
"""

from __future__ import annotations

import sys
from typing import Any, Final

# Importing the converter sends an event to Google Analytics, and takes 0.2 s.
_blocked: dict[str, Any] = sys.modules
_blocked.setdefault("openvino.tools.ovc", None)

import openvino  # noqa: E402

__all__ = ["CORE", "openvino"]

# The first conversion of a type fills a table and gives up the GIL meanwhile. If two threads do it at the same time,
# each waits for the other one, and the whole process hangs (OpenVINO 2026.4.1).
openvino.Type.f32.to_dtype()

# One for the process, which is never deleted: with each one, the CPU device replaces the stack on which the thread
# that creates it handles signals, and frees that stack later. If two were deleted in the order of their creation, or
# by another thread, the next signal would end the process with SIGSEGV (OpenVINO 2026.4.1).
CORE: Final = openvino.Core()
# With memory mapping, editing a file would change results, and cutting it would end the process with SIGBUS.
CORE.set_property({"ENABLE_MMAP": False})
