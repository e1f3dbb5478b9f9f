"""The trials: each disturbs a run several times, lets it finish, and compares it with the undisturbed run.

A run that is disturbed in one phase goes on and is disturbed in a later one again, so that a hundred faults cost less
than ten conversions. If such a run is lost, every fault it met counts as lost.
"""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks.faults.models import LONGEST, Model, logged
from benchmarks.faults.process import POLL, Command, start

BUSY, STORAGE, MEMORY, INTERRUPTED, USAGE = 8, 130, 75, 130, 2
LEVELS_MIB = (16, 64, 128, 256, 512)
"""Address space above what is in use when a command starts."""
WRITERS = (["convert", "--resume", "--out"], ["eval"], ["export"], ["bench"], ["report"])
"""Commands that write a run."""
Point = dict[str, Any]
Moment = tuple[str, float]
"""Line of the log by which a phase is known ("" for planning), CPU seconds after it."""


def draw(model: Model, kind: str, number: int) -> random.Random:
    """The random numbers of one trial, the same in every campaign."""
    return random.Random(f"{model.name} {kind} {number}")


def moments(model: Model, kind: str, number: int, count: int) -> list[Moment]:
    """A random moment of each phase, of ``count`` random phases if there are more."""
    chosen = draw(model, kind, number)
    places = sorted(chosen.sample(range(len(model.phases)), min(count, len(model.phases))))
    return [(model.phases[i][0], chosen.random() * model.phases[i][1]) for i in places]


def reach(model: Model, command: Command, out: Path, before: int, moment: Moment) -> str:
    """Wait for a moment, at the longest until the phase after it begins; return the phase.

    Args:
        before: lines that the log had when the command started.
    """
    line, seconds = moment
    lines = [line for line, _ in model.phases]
    later, begun = set(lines[lines.index(line) + 1 :]), 0.0 if not line else None
    while command.poll() is None:
        seen, spent = logged(out)[before:], command.cpu_seconds()
        begun = spent if begun is None and line in seen else begun
        if later.intersection(seen) or (begun is not None and spent - begun >= seconds):
            return seen[-1] if seen else "plan"
        time.sleep(POLL)
    return "end"


def disturb(
    model: Model, out: Path, chosen: Sequence[Moment], strike: Callable[[Command], Point], end: float
) -> list[Point]:
    """Disturb a run at each of the moments, as long as it goes on and the time is not over; then let it finish."""
    points: list[Point] = []
    command, before, struck = model.convert(out), 0, False
    for moment in chosen:
        if command.poll() is not None:
            if command.code == 0 or time.monotonic() > end:
                break
            before = len(logged(out))
            command, struck = model.convert(out), False
        phase = reach(model, command, out, before, moment)
        if command.poll() is not None:
            break
        points.append({"phase": phase, **strike(command)})
        struck = command.poll() is not None
        if not points[-1]["expected"]:
            break
    if not struck and command.wait(LONGEST) != 0:
        lost = {"outcome": "LOST: it failed after the fault", "again": command.code, "said": command.said()}
        return [_judged(point, lost) for point in points]
    return finished(model, out, points)


def signalled(model: Model, kind: str, number: int, count: int, end: float) -> list[Point]:
    """Kill or stop a run at random moments of its phases."""
    sent, wanted = (signal.SIGKILL, -9) if kind == "kill" else (signal.SIGTERM, INTERRUPTED)

    def strike(command: Command) -> Point:
        begun = time.monotonic()
        command.send(sent)
        code = command.wait(LONGEST)
        point = {"code": code, "expected": code in (0, wanted), "said": command.said()}
        return point if kind == "kill" else {**point, "seconds": round(time.monotonic() - begun, 1)}

    return disturb(model, fresh(model.work / f"{kind}-{number}"), moments(model, kind, number, count), strike, end)


def full_disk(model: Model, number: int, count: int, end: float) -> list[Point]:
    """Fill the disk when a phase begins, until the command ends; then free it."""
    with tmpfs(model.work / "disk", 4 * size(model.whole) + (32 << 20)) as disk:
        if disk is None:
            return [{"phase": "none", "outcome": "skipped: mounting is not allowed"}] * count

        def strike(command: Command) -> Point:
            fill(disk / "filler")
            code = command.wait(LONGEST)
            (disk / "filler").unlink()
            return {"code": code, "expected": code in (0, STORAGE), "said": command.said()}

        return disturb(model, disk / "run", [(line, 0.0) for line, _ in model.phases][number:], strike, end)


def short_memory(model: Model, number: int, count: int, end: float) -> list[Point]:
    """Limit the address space of one command after the other, each a little less; a run that ends is begun again."""
    out, points = fresh(model.work / f"memory-{number}"), []
    for level in LEVELS_MIB[number:]:

        def limit(level: int = level) -> None:
            used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
            resource.setrlimit(resource.RLIMIT_AS, (used + (level << 20),) * 2)

        command = model.convert(out, before=limit)
        code = command.wait(LONGEST)
        expected = code in (0, MEMORY)
        points.append({"phase": f"{level} MiB free", "code": code, "expected": expected, "said": command.said()})
        if code == 0 or time.monotonic() > end:
            break
    return finished(model, out, points)


def flipped(model: Model, number: int, count: int, end: float) -> list[Point]:
    """Flip one bit of a file of the finished run; a command that reads it must name it."""
    name = flippable(model)[number]
    chosen, file = random.Random(f"{model.name} {name}"), model.whole / name
    content = file.read_bytes()
    place, bit = chosen.randrange(len(content)), 1 << chosen.randrange(8)
    file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
    try:
        command = start(["inspect", model.whole], model.work / "inspect.txt")
        code, said = command.wait(LONGEST), command.said()
    finally:
        file.write_bytes(content)
    if code == USAGE and name in said:
        return [{"phase": name, "code": code, "outcome": "named"}]
    return [{"phase": name, "code": code, "outcome": "LOST: the damage was not named", "said": said}]


def two_processes(model: Model, number: int, count: int, end: float) -> list[Point]:
    """Give commands that write a run while another process writes it."""
    out = fresh(model.work / f"two-{number}")
    writers = iter(WRITERS[number:])

    def strike(command: Command) -> Point:
        words = next(writers)
        second = start([*words, out], model.work / f"two-{number}-second.txt")
        code = second.wait(LONGEST)
        expected = code == BUSY or command.poll() is not None
        return {"code": code, "expected": expected, "said": second.said(), "second": " ".join(words)}

    chosen = [m for m in moments(model, "two", number, len(model.phases)) if m[0]]
    return disturb(model, out, chosen[:: max(1, len(chosen) // count)][:count], strike, end)


def finished(model: Model, out: Path, points: list[Point]) -> list[Point]:
    """Finish a disturbed run, compare it, remove it if it is as it should be, and return the points with outcomes."""
    again = model.convert(out)
    code = again.wait(LONGEST)
    lost: Point = {}
    if code != 0:
        lost = {"outcome": "LOST: it cannot be resumed", "again": code, "said": again.said()}
    elif differs := model.differs(out):
        lost = {"outcome": "LOST: not as undisturbed", "differs": differs}
    else:
        shutil.rmtree(out, ignore_errors=True)
    return [_judged(point, lost) for point in points]


def _judged(point: Point, lost: Point) -> Point:
    expected, said = point.pop("expected"), point.pop("said")
    if lost:
        return {**point, **lost}
    return {**point, "outcome": "as undisturbed"} if expected else {**point, "outcome": "unexpected", "said": said}


def fresh(out: Path) -> Path:
    shutil.rmtree(out, ignore_errors=True)
    return out


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())


def fill(filler: Path) -> None:
    """Write zeros until the disk is full."""
    with contextlib.suppress(OSError), open(filler, "ab", buffering=0) as file:
        for block in (1 << 20, 4096, 1):
            with contextlib.suppress(OSError):
                while file.write(bytes(block)):
                    pass


@contextlib.contextmanager
def tmpfs(folder: Path, size: int) -> Iterator[Path | None]:
    """A small file system in memory; None where mounting is not allowed."""
    folder.mkdir(exist_ok=True)
    command = ["mount", "-t", "tmpfs", "-o", f"size={size >> 10}k", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        yield None
        return
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], capture_output=True, check=True)


def flippable(model: Model) -> list[str]:
    """Every file of the finished run but the lock, which holds nothing that is read again, and empty ones."""
    files = (p for p in sorted(model.whole.rglob("*")) if p.is_file() and p.name != ".lock" and os.path.getsize(p))
    return [p.relative_to(model.whole).as_posix() for p in files]


TRIALS: dict[str, Callable[[Model, int, int, float], list[Point]]] = {
    "kill": lambda model, number, count, end: signalled(model, "kill", number, count, end),
    "term": lambda model, number, count, end: signalled(model, "term", number, count, end),
    "full disk": full_disk,
    "memory": short_memory,
    "flip": flipped,
    "two processes": two_processes,
}
"""Each takes a model, the number of its first point, how many are wanted, and when to stop; it returns its points."""
