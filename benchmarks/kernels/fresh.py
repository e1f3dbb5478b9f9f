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

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True, slots=True)
class Limits:
    """What a point may take."""

    seconds: float
    memory_gib: float
    """Private memory on the CPU; on a GPU the device's own size is the limit."""
    budget: float
    """Seconds of repeats per pass."""
    threads: int


def point(case: Case, contender: str, limits: Limits) -> dict[str, Any]:
    """Results by pass, with ``status`` "done" or what ended it early."""
    task = {"case": case.as_json(), "contender": contender, "budget": limits.budget, "memory_gib": limits.memory_gib}
    environment = os.environ | {
        "OMP_NUM_THREADS": str(limits.threads),
        "MKL_NUM_THREADS": str(limits.threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
        "PYTHONWARNINGS": "ignore",
        "XARCH_KERNELS": "",
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
            command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=limits.seconds
        )
        out = done.stdout
        if done.returncode != 0:
            status = failure(done.returncode, done.stderr, limits)
    except subprocess.TimeoutExpired as e:
        out = e.stdout.decode() if isinstance(e.stdout, bytes) else (e.stdout or "")
        status = f"over the time limit of {limits.seconds:.0f} s"
    lines = [json.loads(line) for line in out.splitlines() if line.startswith("{")]
    return {"status": status} | {line.pop("pass"): line for line in lines}


def failure(code: int, error: str, limits: Limits) -> str:
    """One line on why a process failed."""
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
