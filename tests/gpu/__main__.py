"""`make gpu-check`: run all tests that need a GPU, and print a table of results and figures.

Exits with 0 only if no check failed and at least one ran.
"""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.gpu.driver import NO_DEVICE, problem

FOLDER = Path(__file__).parent


def package_problem() -> str | None:
    """Return which package is missing or is the one for a CPU, or None."""
    missing = [name for name in ("faiss", "onnxruntime", "torch") if find_spec(name) is None]
    if missing:
        return f"{' and '.join(missing)} is not installed; use the extras gpu and train"
    import faiss  # noqa: PLC0415 - only if it is installed
    import onnxruntime  # noqa: PLC0415
    import torch  # noqa: PLC0415

    found = {
        "faiss-gpu": hasattr(faiss, "StandardGpuResources"),
        "onnxruntime-gpu": "CUDAExecutionProvider" in onnxruntime.get_available_providers(),
        "torch with CUDA": torch.version.cuda is not None,
    }
    wrong = [name for name, works in found.items() if not works]
    return f"{' and '.join(wrong)} must be installed instead of the package for CPUs" if wrong else None


def main() -> int:
    """Run the checks, unless this machine cannot."""
    reason = problem() or package_problem()
    if reason is not None:
        print(NO_DEVICE.format(reason=reason), file=sys.stderr)  # noqa: T201 - the output of the command
        return 1
    # The checks share the GPU, so they run in this process. Warnings of CUDA libraries are not failures.
    options = ["-m", "gpu", "-q", "--tb=short", "--override-ini=filterwarnings=default", "--override-ini=addopts="]
    return int(pytest.main([*options, str(FOLDER)]))


if __name__ == "__main__":
    sys.exit(main())
