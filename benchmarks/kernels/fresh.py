"""Runs a point in a fresh process with limits on its time and memory."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.kernels.case import Case
from benchmarks.kernels.watchdog import OVER_TIME

ROOT = Path(__file__).resolve().parents[2]


KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(2**31), "MALLOC_TRIM_THRESHOLD_": str(2**33)}
"""For every contender alike: glibc would fault the pages of large tensors in again with every run, which takes half of
the time of scans that materialise their states. Other allocators ignore it."""
GRACE = 1800
"""Seconds for all that has no limit of its own: imports, the warm-up, float64, repeats."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a point may take."""

    seconds: float
    """For the first run of a pass; inputs and the truth it is compared with are not counted."""
    memory_gib: float
    """Private memory on the CPU; on a GPU the device's own size is the limit."""
    budget: float
    """Seconds of repeats per pass."""
    threads: int


def point(case: Case, contender: str, limits: Limits, truth: Path) -> dict[str, Any]:
    """Results by pass, with ``status`` "done" or what ended it early.

    Args:
        truth: folder in which the float64 results of this case are kept for its other contenders.
    """
    task = {
        "case": case.as_json(),
        "contender": contender,
        "budget": limits.budget,
        "seconds": limits.seconds,
        "memory_gib": limits.memory_gib,
        "truth": str(truth),
    }
    environment = os.environ | {
        "OMP_NUM_THREADS": str(limits.threads),
        "MKL_NUM_THREADS": str(limits.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore",
        "XARCH_KERNELS": "",
        **KEEP_FREED_MEMORY,
    }
    command = [
        sys.executable,
        "-m",
        "benchmarks.kernels",
        "--point",
        json.dumps(task),
        "--threads",
        str(limits.threads),
    ]
    status = "done"
    try:
        done = subprocess.run(
            command,
            env=environment,
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=2 * limits.seconds + GRACE,
        )
        out = done.stdout
        if done.returncode != 0:
            status = failure(done.returncode, done.stderr, limits)
    except subprocess.TimeoutExpired as e:
        out = e.stdout.decode() if isinstance(e.stdout, bytes) else (e.stdout or "")
        status = "over the time limit of the whole point"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {"status": status} | {line.pop("pass"): line for line in lines}


def failure(code: int, error: str, limits: Limits) -> str:
    """One line on why a process failed."""
    if code == OVER_TIME:
        return f"over the time limit of {limits.seconds:g} s"
    last = (error.strip().splitlines() or [f"exit status {code}"])[-1][:200]
    if "alloc" in last or "MemoryError" in last or "out of memory" in last or code == -9:
        return f"out of memory (limit {limits.memory_gib:.1f} GiB)"
    return f"failed: {last}"


def enter(memory_gib: float, threads: int) -> None:
    """Called by the fresh process: sets its threads and its memory limit."""
    import torch

    torch.set_num_threads(threads)
    if sys.platform == "linux" and not torch.cuda.is_available():
        import resource

        bound = int(memory_gib * 2**30)
        resource.setrlimit(resource.RLIMIT_DATA, (bound, bound))
