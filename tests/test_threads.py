"""The number of threads follows the load at the start, and threads wait without taking cores from others."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from xarch import threads
from xarch.threads import PASSIVE, Threads, choose_threads


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Four cores, all of them this process's."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(threads, "cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 4)
    monkeypatch.setattr(threads, "SAMPLE", 0.0)
    return monkeypatch


def load(machine: pytest.MonkeyPatch, average: float, sampled: float | None = None) -> None:
    machine.setattr(os, "getloadavg", lambda: (average, 0.0, 0.0))
    busy = iter([{0: 0.0}, {0: 1e9 * (sampled or 0.0)}])
    machine.setattr(threads, "_busy", lambda: None if sampled is None else next(busy))


@pytest.mark.parametrize(("average", "count"), [(0.0, 4), (0.4, 4), (1.2, 3), (2.4, 2), (3.9, 1), (40.0, 1)])
def test_threads_take_the_cores_that_are_free(machine: pytest.MonkeyPatch, average: float, count: int) -> None:
    load(machine, average)
    chosen = choose_threads(None)
    assert chosen.count == count
    assert ("busy" in chosen.why) == (average > 0.5)


def test_the_choice_of_the_user_wins(machine: pytest.MonkeyPatch) -> None:
    load(machine, 40.0)
    machine.setenv("OMP_NUM_THREADS", "3")
    assert choose_threads(None) == Threads(3, "OMP_NUM_THREADS")
    assert choose_threads(2) == Threads(2, "requested")
    machine.setenv("OMP_NUM_THREADS", "nonsense")
    assert choose_threads(None).count == 1


def test_a_load_that_has_ended_takes_no_threads(machine: pytest.MonkeyPatch) -> None:
    load(machine, 4.0, sampled=0.0)
    assert choose_threads(None) == Threads(4, "all 4 cores are free")
    load(machine, 4.0, sampled=1.0)
    assert choose_threads(None).count == 3


def test_load_elsewhere_on_a_large_machine_takes_no_threads(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(os, "cpu_count", lambda: 64)
    load(machine, 40.0)
    assert choose_threads(None).count == 4
    assert threads.busy(4) == ""
    load(machine, 62.0)
    assert choose_threads(None).count == 2
    assert threads.busy(4) == "the machine is busy: a load of 2.0 on 4 cores"


@pytest.mark.parametrize(
    ("files", "quota"),
    [
        ({}, None),
        ({"cpu.max": "max 100000\n"}, None),
        ({"cpu.max": "250000 100000\n"}, 2.5),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu/cpu.cfs_quota_us": "50000", "cpu/cpu.cfs_period_us": "100000"}, 0.5),
    ],
)
def test_the_quota_of_a_container_bounds_the_cores(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, files: dict[str, str], quota: float | None
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert threads.cgroup_quota(tmp_path) == quota
    monkeypatch.setattr(threads, "cgroup_quota", lambda: quota)
    mask = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    assert threads.cores() == (mask if quota is None else max(1, min(mask or 1, int(quota))))


@pytest.mark.skipif(not Path("/proc/stat").is_file(), reason="the system does not say what its cores do")
def test_work_on_a_core_is_seen() -> None:
    before = threads._busy()
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    after = threads._busy()
    assert before is not None
    assert after is not None
    assert sum(after.values()) > sum(before.values())


@pytest.mark.parametrize(
    ("given", "first", "expected"),
    [
        ({}, "", PASSIVE),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, "", {"OMP_WAIT_POLICY": "ACTIVE"}),
        ({}, "sys.modules['torch'] = sys;", {}),
    ],
)
def test_threads_wait_passively_unless_the_user_or_torch_was_first(
    given: dict[str, str], first: str, expected: dict[str, str]
) -> None:
    shown = f"print({{n: os.environ[n] for n in {threads.USERS!r} if n in os.environ}})"
    program = f"import os, sys; {first} import xarch; {shown}"
    kept = {k: v for k, v in os.environ.items() if k not in threads.USERS}
    done = subprocess.run([sys.executable, "-c", program], env={**kept, **given}, capture_output=True, text=True)
    assert done.stdout.strip() == str(expected), done.stderr


BURST = """
import sys, time
import xarch, torch
torch.set_num_threads(2)
x, w = torch.randn(256, 256), torch.randn(256, 256)
started, spent = time.perf_counter(), time.process_time()
for _ in range(300):
    torch.tanh(x @ w)
print(time.process_time() - spent)
"""


@pytest.mark.slow
def test_two_threads_beside_other_work_spend_no_time_waiting() -> None:
    """CPU seconds of two threads beside as many busy processes as cores: waiting threads would multiply them."""
    others = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(os.cpu_count() or 1)]
    environment = {k: v for k, v in os.environ.items() if k not in (*threads.USERS, "OMP_NUM_THREADS")}
    try:
        spent = {}
        for policy in ("", "ACTIVE"):
            chosen = environment | ({"OMP_WAIT_POLICY": policy} if policy else {})
            done = subprocess.run([sys.executable, "-c", BURST], env=chosen, capture_output=True, text=True, check=True)
            spent[policy] = float(done.stdout)
    finally:
        for other in others:
            other.kill()
            other.wait()
    assert spent[""] < 0.5 * spent["ACTIVE"]
