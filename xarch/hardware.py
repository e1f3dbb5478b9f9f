"""Which device, how many threads, which precision."""

from __future__ import annotations

import contextlib
import os

import torch

from xarch.config.schema import Runtime
from xarch.errors import UsageError


def cores() -> int:
    """CPU cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)


def choose_device(name: str, local_rank: int = 0) -> torch.device:
    """The device called ``name``; "auto" is the accelerator if there is one, else the CPU.

    Raises:
        UsageError: the device does not exist here.
    """
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


def choose_threads(wanted: int | None) -> int:
    """Threads for CPU work: the wanted number, else OMP_NUM_THREADS, else every core of this process."""
    if wanted is not None:
        return wanted
    given = os.environ.get("OMP_NUM_THREADS", "")
    return int(given) if given.isdigit() and int(given) > 0 else cores()


def autocast(runtime: Runtime, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """bf16 autocast where asked for, or by default where the device computes in bf16; otherwise nothing."""
    wanted = runtime.precision == "bf16" or (
        runtime.precision == "auto" and device.type == "cuda" and torch.cuda.is_bf16_supported()
    )
    return torch.autocast(device.type, torch.bfloat16) if wanted else contextlib.nullcontext()
