"""Goes through operations, shapes, lengths and contenders, and measures what the file does not have yet."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.kernels import fresh
from benchmarks.kernels.case import Case
from benchmarks.kernels.operation import Operation
from benchmarks.kernels.work import floor
from benchmarks.store import Store

PASSES = ("forward", "forward_backward")


def cases(
    operations: Sequence[Operation],
    lengths: Sequence[int],
    device: str,
    dtype: str,
    shapes: Sequence[str],
    *,
    also: bool = False,
) -> Iterator[tuple[Operation, Case]]:
    """Every case; shapes meant for a GPU only there, unless they are asked for by name.

    Args:
        also: whether the further lengths of an operation are measured, too.
    """
    for operation in operations:
        for full, size in operation.shapes.items():
            shape = full.removeprefix("gpu:")
            if shapes and shape not in shapes:
                continue
            if not shapes and full != shape and device != "cuda":
                continue
            for length in sorted({*lengths, *(operation.also if also else ())}):
                yield operation, Case(operation.name, shape, size, length, dtype, device)


def sweep(
    todo: Sequence[tuple[Operation, Case]],
    store: Store,
    limits: fresh.Limits,
    rates: dict[str, float],
    named: Sequence[str],
) -> Iterator[dict[str, Any]]:
    """Measure what is missing, write it, and yield every point.

    Args:
        named: parts of names; only contenders with one of them in their own take part.
    """
    for operation, case in todo:
        default = True
        with tempfile.TemporaryDirectory() as truths:
            for contender in operation.contenders(case):
                is_default, default = contender.ours and default, default and not contender.ours
                if not any(part in contender.name for part in named):
                    continue
                point = store.find(**case.as_json(), contender=contender.name)
                if point is None:
                    if contender.absent(case) is not None:
                        continue
                    refusal = contender.cannot(case) or given_up(operation, store, case, contender.name)
                    start = time.monotonic()
                    found = {"status": refusal} if refusal else fresh.point(case, contender.name, limits, Path(truths))
                    point = case.as_json() | {
                        "contender": contender.name,
                        "ours": contender.ours,
                        "default": is_default,
                        "family": contender.family,
                        "load_1min": round(os.getloadavg()[0], 1),
                        "took_s": round(time.monotonic() - start, 1),
                    }
                    point |= found
                    add_floor(point, operation, case, rates)
                    store.add(point)
                yield point


def given_up(operation: Operation, store: Store, case: Case, contender: str) -> str | None:
    """A contender that did not finish a shorter case is not tried on a longer one, and its time is not guessed.

    Where a promise of the project is measured it is, for a lower bound.
    """
    if case.length in operation.promised:
        return None
    for point in store.points:
        same = (point["op"], point["shape"], point["contender"]) == (case.op, case.shape, contender)
        finished = "seconds" in point.get(PASSES[1], {})
        if same and point["length"] < case.length and not finished and "limit" in point["status"]:
            return f"not tried: {point['status']} at {point['length']} tokens"
    return None


def add_floor(point: dict[str, Any], operation: Operation, case: Case, rates: dict[str, float]) -> None:
    """Beside each time the least work, the shortest time at the machine's limits, and what binds."""
    for name in PASSES:
        if "seconds" in point.get(name, {}):
            work = operation.work(case, name == PASSES[1])
            least = floor(work, rates)
            point[name]["work"] = asdict(work)
            point[name]["floor_seconds"] = least.seconds
            point[name]["bound"] = least.bound
            clock = "cpu_seconds" if case.device == "cpu" else "seconds"
            point[name]["times_floor"] = round(point[name][clock] / least.seconds, 2)
