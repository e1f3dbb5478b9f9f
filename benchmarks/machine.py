"""Facts about the machine and the versions, for the record."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "torch",
    "transformers",
    "triton",
    "mamba-ssm",
    "causal-conv1d",
    "mambapy",
    "mamba-stock",
    "mambax",
    "minimamba",
    "accelerated-scan",
    "assoc-scan",
    "mamba-scan-lite",
)


def machine(device: str, threads: int) -> dict[str, Any]:
    import torch

    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else cpu_name(),
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "threads": threads,
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "system": platform.platform(),
        "vector_isa": torch.backends.cpu.get_cpu_capability(),
    }


def versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    compiler = subprocess.run(["g++", "--version"], capture_output=True, text=True) if _has("g++") else None
    if compiler is not None and compiler.stdout:
        found["g++"] = compiler.stdout.splitlines()[0]
    return found


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def available_gib() -> float:
    """Memory that can be allocated now, in GiB."""
    info = Path("/proc/meminfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return float(line.split()[1]) / 2**20
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 / 2


def _has(program: str) -> bool:
    import shutil

    return shutil.which(program) is not None
