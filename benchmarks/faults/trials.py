"""The trials: each disturbs a run once, lets the same command finish it, and compares it with the undisturbed run."""

from __future__ import annotations

import contextlib
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from benchmarks.faults.models import LONGEST, Model, logged
from benchmarks.faults.process import POLL, Command, start

BUSY, STORAGE, MEMORY, INTERRUPTED, USAGE = 8, 130, 75, 130, 2
LEVELS_MIB = (16, 64, 128, 256, 512)
"""Address space above what is in use when a command starts."""
Point = dict[str, Any]


def draw(model: Model, kind: str, number: int) -> random.Random:
    """The random numbers of one trial, the same in every campaign."""
    return random.Random(f"{model.name} {kind} {number}")


def moment(model: Model, command: Command, out: Path, chosen: random.Random) -> str:
    """Wait for a random moment of a random phase, each phase equally often; return the phase."""
    line, seconds = chosen.choice(model.phases)
    while line and line not in logged(out) and command.poll() is None:
        time.sleep(POLL)
    end = time.monotonic() + chosen.random() * seconds
    while time.monotonic() < end and command.poll() is None:
        time.sleep(POLL)
    return line or "plan"


def signalled(model: Model, kind: str, number: int) -> Point:
    """Kill or stop a run at a random moment, then give the same command again."""
    out, chosen = fresh(model.work / f"{kind}-{number}"), draw(model, kind, number)
    command = model.convert(out)
    phase = moment(model, command, out, chosen)
    command.send(signal.SIGKILL if kind == "kill" else signal.SIGTERM)
    code = command.wait(LONGEST)
    expected = (0, -9) if kind == "kill" else (0, INTERRUPTED)
    return finished(model, out, phase, code, code in expected, command.said())


def full_disk(model: Model, number: int) -> Point:
    """Fill the disk when a phase begins, then free it and give the same command again."""
    line, _ = model.phases[number]
    with tmpfs(model.work / "disk", 4 * size(model.whole) + (32 << 20)) as disk:
        if disk is None:
            return {"phase": line or "plan", "outcome": "skipped: mounting is not allowed"}
        out, filler = disk / "run", disk / "filler"
        if not line:
            fill(filler)
        command = model.convert(out)
        while line and line not in logged(out) and command.poll() is None:
            time.sleep(POLL)
        fill(filler)
        code = command.wait(LONGEST)
        filler.unlink()
        said = command.said()
        return finished(model, out, line or "plan", code, code in (0, STORAGE), said)


def short_memory(model: Model, number: int) -> Point:
    """Limit the address space, then give the same command again without a limit."""

    def limit() -> None:
        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + (LEVELS_MIB[number] << 20),) * 2)

    out = fresh(model.work / f"memory-{number}")
    command = model.convert(out, before=limit)
    code = command.wait(LONGEST)
    where = f"{LEVELS_MIB[number]} MiB free"
    return finished(model, out, where, code, code in (0, MEMORY), command.said())


def flipped(model: Model, name: str) -> Point:
    """Flip one bit of a file of the finished run; a command that reads it must name it."""
    chosen, file = draw(model, "flip", 0), model.whole / name
    chosen = random.Random(f"{model.name} {name}")
    content = file.read_bytes()
    place, bit = chosen.randrange(len(content)), 1 << chosen.randrange(8)
    file.write_bytes(content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :])
    try:
        command = start(["inspect", model.whole], model.work / "inspect.txt")
        code, said = command.wait(LONGEST), command.said()
    finally:
        file.write_bytes(content)
    if code == USAGE and name in said:
        return {"phase": name, "code": code, "outcome": "named"}
    return {"phase": name, "code": code, "outcome": "LOST: the damage was not named", "said": said}


def two_processes(model: Model, number: int) -> Point:
    """Give commands that write a run while another process writes it."""
    commands = (["convert", "--resume", "--out"], ["eval"], ["export"], ["bench"], ["report"])
    chosen, out = draw(model, "two", number), fresh(model.work / f"two-{number}")
    first = model.convert(out)
    while not logged(out) and first.poll() is None:
        time.sleep(POLL)
    phase = moment(model, first, out, chosen)
    words = commands[number % len(commands)]
    second = start([*words, out], model.work / f"two-{number}-second.txt")
    code = second.wait(LONGEST)
    alive = first.poll() is None
    ended = first.wait(LONGEST)
    point = finished(model, out, phase, ended, ended == 0 and (code == BUSY or not alive), second.said())
    return {**point, "second": " ".join(words), "second_code": code}


def finished(model: Model, out: Path, phase: str, code: int, expected: bool, said: str) -> Point:
    """Finish a disturbed run by the same command, compare it, and remove it."""
    point: Point = {"phase": phase, "code": code}
    again = model.convert(out)
    point["again"] = again.wait(LONGEST)
    differs = model.differs(out) if point["again"] == 0 else ["the run"]
    if point["again"] != 0:
        point |= {"outcome": "LOST: it cannot be resumed", "said": again.said()}
    elif differs:
        point |= {"outcome": "LOST: not as undisturbed", "differs": differs}
    elif not expected:
        point |= {"outcome": "unexpected", "said": said}
    else:
        point["outcome"] = "as undisturbed"
    shutil.rmtree(out, ignore_errors=True)
    return point


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


TRIALS: dict[str, Callable[[Model, int], Point]] = {
    "kill": lambda model, number: signalled(model, "kill", number),
    "term": lambda model, number: signalled(model, "term", number),
    "full disk": full_disk,
    "memory": short_memory,
    "flip": lambda model, number: flipped(model, flippable(model)[number]),
    "two processes": two_processes,
}
