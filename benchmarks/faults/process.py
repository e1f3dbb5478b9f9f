"""Commands of xarch in forks of one process that has imported everything, so that a trial costs a conversion only."""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

MODULES = (
    "accelerate",
    "matplotlib.pyplot",
    "onnxruntime",
    "torch._dynamo",
    "transformers",
    "xarch.cli.app",
    "xarch.engine.gradient",
    "xarch.run.conversion",
    "xarch.planning.build",
    "xarch.report.build",
    "xarch.export.run",
)
POLL = 0.01


def warm_up() -> None:
    """Import what a conversion imports; nothing may be computed here, since threads do not survive a fork."""
    import torch

    torch.set_num_threads(1)
    for module in MODULES:
        importlib.import_module(module)
    from xarch.registry.loader import get_registry

    get_registry()
    gc.freeze()


def import_like(modules: Path) -> None:
    """Import what a command imported, so that the next ones need not."""
    for name in modules.read_text(encoding="utf-8").split():
        # Some modules can only be imported by another one.
        with contextlib.suppress(Exception):
            importlib.import_module(name)
    gc.freeze()


@dataclass
class Command:
    """A running command.

    Attributes:
        pid: its process.
        output: file of what it prints.
        code: exit code once it ended, negative for a signal.
    """

    pid: int
    output: Path
    code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.code = os.waitstatus_to_exitcode(status) if pid else None
        return self.code

    def cpu_seconds(self) -> float:
        """Return the CPU time of it and its descendants; 0 once it ended."""
        return _cpu_ticks(self.pid) / os.sysconf("SC_CLK_TCK")

    def wait(self, seconds: float) -> int:
        """Return the exit code; a command that takes longer is killed and counts as -9."""
        end = time.monotonic() + seconds
        while self.poll() is None:
            if time.monotonic() > end:
                self.send(signal.SIGKILL)
            time.sleep(POLL)
        assert self.code is not None
        return self.code

    def send(self, number: int) -> None:
        """Send a signal, unless it has ended."""
        if self.poll() is None:
            os.kill(self.pid, number)

    def said(self) -> str:
        """Return its last error line."""
        lines = self.output.read_text(encoding="utf-8", errors="replace").splitlines()
        errors = [line for line in lines if line.startswith("error (")]
        return (errors or lines or [""])[-1][:240]


def _cpu_ticks(pid: int) -> int:
    """Clock ticks of a process, of the children it waited for, and of those that run."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return sum(map(int, fields[11:15])) + sum(_cpu_ticks(int(child)) for child in children)


def start(
    arguments: Sequence[object],
    output: Path,
    before: Callable[[], None] | None = None,
    modules: Path | None = None,
) -> Command:
    """Start ``xarch ARGUMENTS`` in a fork.

    Args:
        before: called in the fork first, for example to set limits.
        modules: where it writes the names of the modules that it imported.
    """
    pid = os.fork()
    if pid:
        return Command(pid, output)
    code = 1
    try:
        to = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(to, 1)
        os.dup2(to, 2)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        if before is not None:
            before()
        from xarch.cli.app import run

        known = set(sys.modules)
        code = run([str(a) for a in arguments])
        if modules is not None:
            found = (n for n, m in sys.modules.items() if n not in known and getattr(m, "__file__", None))
            modules.write_text("\n".join(found), encoding="utf-8")
    finally:
        os._exit(code)
    raise AssertionError
