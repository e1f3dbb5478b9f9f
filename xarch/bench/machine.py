"""Facts about the machine of a measurement."""

from __future__ import annotations

import platform
from typing import Any

import numpy as np
import onnxruntime as ort

from xarch._version import __version__
from xarch.hardware import memory_bytes, processor
from xarch.threads import cores


def machine() -> dict[str, Any]:
    """Return the processor, the cores available to this process, the memory, and the versions of the libraries."""
    return {
        "processor": processor(),
        "cores": cores(),
        "memory_gb": None if (memory := memory_bytes()) is None else round(memory / 1e9, 1),
        "system": platform.platform(terse=True),
        "versions": {
            "xarch": __version__,
            "onnxruntime": ort.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }
