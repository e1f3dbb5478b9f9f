"""Facts about the machine, the installed versions and the code, for the header of a result."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from xarch import hardware

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = (
    "torch",
    "transformers",
    "numpy",
    "onnxruntime",
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
    """What a measurement runs on; nothing that changes from minute to minute."""
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
    """Python, the compiler, and every installed package that a benchmark measures or uses."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    if shutil.which("g++"):
        printed = subprocess.run(["g++", "--version"], capture_output=True, text=True).stdout
        found["g++"] = (printed.splitlines() or ["unknown"])[0]
    return found


def commit() -> str | None:
    """The commit that is checked out, marked where files differ from it; None outside a git checkout."""
    if not (ROOT / ".git").exists() or not shutil.which("git"):
        return None
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty", "--exclude=*"],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    return done.stdout.strip() or None


def cpu_name() -> str:
    return hardware.processor()


def available_gib() -> float:
    """Memory that can be allocated now, in GiB."""
    found = hardware.available_bytes()
    return (found if found is not None else (hardware.memory_bytes() or 0) / 2) / 2**30
