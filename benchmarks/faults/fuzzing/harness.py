"""Runs cases in forked children with a limit of CPU time and of memory for each, and classes what comes of them."""

from __future__ import annotations

import json
import os
import random
import resource
import select
import shutil
import signal
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

CPU_SECONDS = 20.0
"""CPU time of one case; what takes longer hangs. A first case also imports libraries: 5 s, on a core that is shared."""
WALL_SECONDS = 90.0
"""Wall time of one case, for what waits without working."""
MEMORY = 3 << 30
"""Address space that a case may use beyond what its process has, and resident memory that it may add."""
CLASSES = ("refused", "accepted", "traceback", "hang", "memory", "crash")
KEPT = 200


@dataclass(frozen=True)
class Target:
    """One kind of input.

    Attributes:
        name: of the kind.
        share: cases of the whole campaign, of 10,000.
        prepare: writes intact inputs into a folder; called once, before any fork.
        case: makes one mutated input in a scratch folder and reads it as the product does; ``prepared`` is the folder
            that ``prepare`` filled. XarchError: refused.
    """

    name: str
    share: int
    prepare: Callable[[Path], None]
    case: Callable[[random.Random, Path, Path], None]


@dataclass
class Outcome:
    """What a number of cases came to.

    Attributes:
        counts: class -> number of cases.
        found: cases that should not be, with where they ended.
        seconds: CPU time of the slowest case that ended.
        peak: bytes of memory that the largest case added.
    """

    counts: Counter[str] = field(default_factory=Counter)
    found: list[str] = field(default_factory=list)
    seconds: float = 0.0
    peak: int = 0


def run(target: Target, cases: range, seed: int, prepared: Path) -> Outcome:
    """Run the cases of a target; a child that a case ends is replaced for the cases after it."""
    outcome, at = Outcome(), cases.start
    while at < cases.stop:
        for line in _child(target, range(at, cases.stop), seed, prepared):
            outcome.counts[line["class"]] += 1
            outcome.seconds = max(outcome.seconds, line.get("seconds", 0.0))
            outcome.peak = max(outcome.peak, line.get("peak", 0))
            if line["class"] not in ("refused", "accepted") and len(outcome.found) < KEPT:
                outcome.found.append(f"{target.name} {at}: {line['class']}: {line.get('where', '')}")
            at += 1
    return outcome


def _child(target: Target, cases: range, seed: int, prepared: Path) -> Iterator[dict]:
    """Yield a result for each case, up to the first that ends the process."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(receive)
        _work(target, cases, seed, prepared, send)
    os.close(send)
    done, held, ended = 0, b"", ""
    with os.fdopen(receive, "rb", buffering=0) as stream:
        while True:
            ready, _, _ = select.select([stream], [], [], WALL_SECONDS)
            if not ready:
                os.kill(pid, signal.SIGKILL)
                ended = "hang"
                break
            chunk = stream.read(1 << 16)
            if not chunk:
                break
            *lines, held = (held + chunk).split(b"\n")
            for line in lines:
                done += 1
                yield json.loads(line)
    _, status = os.waitpid(pid, 0)
    if done < len(cases):
        number = os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0
        known = {int(signal.SIGPROF): "hang", int(signal.SIGKILL): "memory"}
        ended = ended or known.get(number, "crash")
        yield {"class": ended, "where": f"ended by signal {number}" if number else f"status {status}"}


def _work(target: Target, cases: range, seed: int, prepared: Path, send: int) -> None:
    """Never returns: the child's part."""
    quiet = os.open(os.devnull, os.O_RDWR)
    for number in (0, 1, 2):
        os.dup2(quiet, number)
    used = _status("VmSize")
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    scratch = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        for case in cases:
            folder = scratch / str(case)
            folder.mkdir()
            line = json.dumps(_one(target, case, seed, prepared, folder)) + "\n"
            shutil.rmtree(folder, ignore_errors=True)
            os.write(send, line.encode())
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(0)


def _one(target: Target, case: int, seed: int, prepared: Path, folder: Path) -> dict:
    from xarch.errors import OutOfMemoryError, XarchError

    rng = random.Random(f"{seed} {target.name} {case}")
    Path("/proc/self/clear_refs").write_text("5")
    before, begin = _status("VmRSS"), time.process_time()
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    where = ""
    try:
        target.case(rng, prepared, folder)
        kind = "accepted"
    except (OutOfMemoryError, MemoryError) as e:
        kind, where = "memory", _place(e)
    except XarchError:
        kind = "refused"
    except BaseException as e:
        text = str(e)
        short = "allocate" in text or "out of memory" in text.lower()
        kind, where = ("memory" if short else "traceback"), _place(e)
    signal.setitimer(signal.ITIMER_PROF, 0)
    peak = max(0, _status("VmHWM") - before)
    kind = "memory" if peak > MEMORY else kind
    return {"class": kind, "where": where, "seconds": round(time.process_time() - begin, 2), "peak": peak}


def _place(error: BaseException) -> str:
    """Where an error was raised, last inside the project."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [f for f in frames if "/xarch" in f.filename and "site-packages" not in f.filename] or frames
    last = own[-1]
    return f"{type(error).__name__}: {str(error)[:120]!r} at {Path(last.filename).name}:{last.lineno}"


def _status(name: str) -> int:
    """A figure of this process in bytes."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(f"{name}:"))
