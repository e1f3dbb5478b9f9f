"""Environment of a run: versions, machine and seeds, for run.json."""

from __future__ import annotations

import contextlib
import platform
import subprocess
import time
from pathlib import Path
from typing import Any

from xarch._version import __version__
from xarch.planning.plan import Plan


def environment(plan: Plan, world: int) -> dict[str, Any]:
    """Return versions, machine and seeds for run.json."""
    from importlib.metadata import PackageNotFoundError, version

    from packaging.requirements import Requirement

    versions = {}
    for name in sorted({Requirement(line).name for line in _requirements()}):
        with contextlib.suppress(PackageNotFoundError):
            versions[name] = version(name)
    git = None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        git = subprocess.run(
            ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
    return {
        "xarch": __version__,
        "versions": versions,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.processor() or platform.machine(),
        "git": git,
        "device": plan.device,
        "threads": plan.threads,
        "threads_why": plan.threads_why,
        "processes": world,
        "plugins": plan.plugins,
        "seed": plan.config.seed,
        "started": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _requirements() -> list[str]:
    """Return the requirement lines of xarch."""
    from importlib.metadata import PackageNotFoundError, requires

    with contextlib.suppress(PackageNotFoundError):
        return [line for line in requires("xarch") or [] if "extra ==" not in line]
    return []
