"""Facts about this machine, and the resources of a run: devices, precision. Threads: :mod:`xarch.threads`."""

from __future__ import annotations

import contextlib
import os
import platform
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from xarch.errors import UsageError

if TYPE_CHECKING:
    import torch


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called ``name``; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        UsageError: the device does not exist here.
    """
    import torch

    if name == "auto":
        kind = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        return torch.device(kind.type, local_rank) if kind is not None else torch.device("cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:
        raise UsageError(
            f"device {name!r} cannot be used: {str(e).splitlines()[0]}", "`xarch doctor` lists the devices"
        ) from e
    return device


def autocast(precision: str, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a bf16 autocast context if requested, or by default if the device supports bf16; else a null context."""
    import torch

    wanted = precision == "bf16" or (precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported())
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()


def processor() -> str:
    """Return the name of the processor."""
    lines = read(Path("/proc/cpuinfo")).splitlines()
    named = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or platform.machine()


def memory_bytes() -> int | None:
    """Return the physical memory in bytes; None if unknown."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def available_bytes() -> int | None:
    """Return the memory available now in bytes; None if unknown."""
    lines = read(Path("/proc/meminfo")).splitlines()
    kilobytes = next((line.split()[1] for line in lines if line.startswith("MemAvailable")), None)
    return None if kilobytes is None else 1024 * int(kilobytes)


def memory_limit() -> int | None:
    """Return the memory limit of this process's cgroup; None without a limit."""
    limit = read(Path("/sys/fs/cgroup/memory.max")).strip()
    return int(limit) if limit.isdigit() else None


def load_average() -> float | None:
    """Processes that wanted a core during the last minute: figures taken beside other work are too slow."""
    return round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None


def read(path: Path) -> str:
    """Return the content of a system file, "" if it does not exist."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def process_bytes() -> int:
    """Return the memory that this process holds: its resident set, or the largest so far where the system tells only
    that."""
    import resource

    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        scale = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * scale
    return pages * resource.getpagesize()
