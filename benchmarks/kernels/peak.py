"""Peak memory of a stretch of code: resident memory on a CPU, allocated memory on a GPU."""

from __future__ import annotations

import ctypes
import gc
import resource
import sys
from pathlib import Path

import torch

_STATUS, _RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")


class Peak:
    """Measures from its creation. Freed memory is first returned to the system, so that its reuse is counted."""

    def __init__(self, device: str) -> None:
        self.device = device
        gc.collect()
        if device == "cuda":
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
            self.start = float(torch.cuda.memory_allocated())
            return
        if sys.platform == "linux":
            ctypes.CDLL(None).malloc_trim(0)
            _RESET.write_text("5")
        self.start = _resident()

    def mib(self) -> float:
        """MiB above the start."""
        if self.device == "cuda":
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - self.start) / 2**20
        return (_resident() - self.start) / 2**20


def _resident() -> float:
    """Peak resident bytes since the last reset (since the start of the process where there is no reset)."""
    if _STATUS.is_file():
        for line in _STATUS.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return float(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return float(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit)
