"""How many CPU threads a run takes, and how they wait; imports no torch.

Threads of OpenMP wait for each other in a busy loop by default. Beside other work a thread that waits keeps the core
which the one it waits for needs, and two threads become 4 to 100 times slower than one.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from xarch.hardware import load_average, read

PASSIVE = {"OMP_WAIT_POLICY": "PASSIVE", "KMP_BLOCKTIME": "0"}
"""For GNU's and Intel's OpenMP. Read once, when torch loads the library."""
USERS = (*PASSIVE, "GOMP_SPINCOUNT")
"""Variables by which a user chooses otherwise."""
SAMPLE = 0.1
"""Seconds over which the use of the cores by others is observed."""
STAT, CGROUP = Path("/proc/stat"), Path("/sys/fs/cgroup")
_SET: list[str] = []


@dataclass(frozen=True)
class Threads:
    """A number of threads, and in a few words why."""

    count: int
    why: str

    def __str__(self) -> str:
        return f"{self.count} thread{'s' if self.count != 1 else ''}{f', {self.why}' if self.why else ''}"


def wait_passively() -> None:
    """Make threads of OpenMP sleep while they wait, unless the user chose otherwise or torch is loaded already."""
    if "torch" in sys.modules or any(name in os.environ for name in USERS):
        return
    os.environ.update(PASSIVE)
    _SET.extend(PASSIVE)


def waiting() -> str:
    """Describe how threads wait and who decided it."""
    if _SET:
        return "passively (set by xarch)"
    chosen = [f"{name}={os.environ[name]}" for name in USERS if name in os.environ]
    if chosen:
        return f"as the environment says: {', '.join(chosen)}"
    return "actively: torch was loaded before xarch could change it; set OMP_WAIT_POLICY=PASSIVE"


def choose_threads(wanted: int | None) -> Threads:
    """The requested number, else OMP_NUM_THREADS, else the cores that nobody else uses now, at least one."""
    if wanted is not None:
        return Threads(wanted, "requested")
    given = os.environ.get("OMP_NUM_THREADS", "")
    if given.isdigit() and int(given) > 0:
        return Threads(int(given), "OMP_NUM_THREADS")
    usable = cores()
    if usable == 1:
        return Threads(1, "one core")
    used = used_by_others()
    if used < 0.5:
        return Threads(usable, f"all {usable} cores are free")
    count = max(1, int(usable - used + 0.5))
    return Threads(count, f"the machine is busy: other work uses {used:.1f} of {usable} cores")


def busy(threads: int) -> str:
    """Say what a run with so many threads meets: "" unless the load leaves it too few cores."""
    usable, load = cores(), _load()
    if threads + load <= usable + 0.5:
        return ""
    return f"the machine is busy: a load of {load:.1f} on {usable} core{'s' if usable != 1 else ''}"


def cores() -> int:
    """Return the number of CPU cores this process may use: its affinity mask, or its cgroup's quota if less."""
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    quota = cgroup_quota()
    return mask if quota is None else max(1, min(mask, int(quota)))


def cgroup_quota(root: Path = CGROUP) -> float | None:
    """Return the CPU quota of this process's cgroup in cores; None without one."""
    limit, _, period = read(root / "cpu.max").strip().partition(" ")
    if not limit:
        limit, period = (read(root / "cpu" / f"cpu.cfs_{name}_us").strip() for name in ("quota", "period"))
    return int(limit) / int(period) if limit.isdigit() and period.isdigit() and int(period) > 0 else None


def used_by_others(seconds: float = SAMPLE) -> float:
    """Return how many of the usable cores other work uses now, at most all.

    The load average still counts what ended a minute ago, the last run of the same user above all, and a short sample
    misses what pauses; the lesser of both counts. On a machine with more cores than this process may use, only the
    load that leaves too few of them free matters.
    """
    usable, by_load = cores(), _load()
    before = _busy()
    if by_load < 0.5 or before is None:
        return by_load
    started = time.monotonic()
    time.sleep(seconds)
    after = _busy()
    if after is None:
        return by_load
    ticks = os.sysconf("SC_CLK_TCK") * (time.monotonic() - started)
    shares = [min((after[core] - before[core]) / ticks, 1.0) for core in after if core in before]
    return min(by_load, sum(sorted(shares)[:usable]))


def _load() -> float:
    """Return the cores of this process's share that the load average leaves no room for."""
    usable = cores()
    load = load_average() or 0.0
    return min(max(usable - ((os.cpu_count() or usable) - load), 0.0), float(usable))


def _busy() -> Mapping[int, float] | None:
    """Ticks that each core of the affinity mask has worked; None where the system does not say."""
    mask = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    found = {}
    for line in read(STAT).splitlines():
        name, *ticks = line.split()
        if name.startswith("cpu") and name[3:].isdigit() and int(name[3:]) in mask and len(ticks) >= 8:
            user, nice, system, _idle, _wait, irq, softirq, steal = map(float, ticks[:8])
            found[int(name[3:])] = user + nice + system + irq + softirq + steal
    return found or None
