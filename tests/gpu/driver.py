"""Find the CUDA devices of this machine with the standard library only.

Run as a script, it exits with a sentence if there is none, before anything is installed.
"""

from __future__ import annotations

import ctypes
import sys

NO_DEVICE = "gpu-check: nothing was checked, because {reason}. Run it on a machine with an NVIDIA GPU and its driver."


def problem() -> str | None:
    """Return why no CUDA device can be used, or None."""
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return "NVIDIA's driver (libcuda.so.1) is not installed"
    devices = ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(devices))
    if code or not devices.value:
        return f"the driver finds no CUDA device (code {code})"
    return None


if __name__ == "__main__":
    reason = problem()
    if reason is not None:
        sys.exit(NO_DEVICE.format(reason=reason))
