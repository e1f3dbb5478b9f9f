"""A campaign of faults on a tiny decoder run and a tiny field run.

    python -m benchmarks.faults                        # 100 kills, 30 signals, ...; half of them for each model
    python -m benchmarks.faults --kills 10 --terms 4 --models decoder

Kills (SIGKILL) and stops (SIGTERM) come at random moments of every phase, from planning to the report; the disk is full
at the beginning of every phase; the address space is limited at five levels; one bit is flipped in every file of a
finished run; a second process writes a run. A run meets one fault in each phase, is resumed after each, and at last
goes on to its end. A fault is "as undisturbed" if that ends well and student, metrics, evaluation and exports are the
same bit for bit as those of a run without faults, and "unexpected" if only the exit code is not the documented one.
Faults that were tried are kept; the same command goes on where it was interrupted. The runs without faults come first
and are not counted in --seconds.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections import Counter
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.faults import process
from benchmarks.faults.models import CONFIGS, Model
from benchmarks.faults.trials import LEVELS_MIB, TRIALS, WRITERS, flippable
from benchmarks.store import Result, Store, add_options, header
from xarch.files.home import cache_dir


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="SIGKILLs, over all models")
    parser.add_argument("--terms", type=int, default=30, metavar="N", help="SIGTERMs, over all models")
    parser.add_argument("--seconds", type=float, default=14400, metavar="S", help="disturb no run after this time")
    parser.add_argument("--models", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--kinds", nargs="+", choices=list(TRIALS), default=list(TRIALS))
    parser.add_argument("--work", type=Path, default=Path("runs/faults"), help="folder of the runs")
    add_options(parser, "faults")
    chosen = parser.parse_args()
    store = Store(chosen.out, header("faults", {"configs": CONFIGS}, threads=1), chosen.fresh)
    # Compiled kernels are the user's; everything else that is cached is the campaign's.
    os.environ.setdefault("XARCH_KERNELS_CACHE", str(cache_dir() / "kernels"))
    os.environ["XARCH_HOME"] = str((chosen.work / store.key / "home").resolve())
    process.warm_up()
    models = [Model(name, chosen.work / store.key / name) for name in chosen.models]
    for model in models:
        model.make()
    end = time.monotonic() + chosen.seconds
    complete = all([run(store, model, kind, count, end) for model in models for kind, count in wanted(model, chosen)])
    show(store.finish() if complete else store.result)
    return int(any(p["outcome"].startswith(("LOST", "unexpected")) for p in store.points))


def wanted(model: Model, chosen: argparse.Namespace) -> list[tuple[str, int]]:
    """The kinds of faults and how many of each one model gets."""
    each = {"kill": -(-chosen.kills // len(chosen.models)), "term": -(-chosen.terms // len(chosen.models))}
    each |= {"full disk": len(model.phases), "memory": len(LEVELS_MIB), "flip": len(flippable(model))}
    return [(kind, (each | {"two processes": len(WRITERS)})[kind]) for kind in chosen.kinds]


def run(store: Store, model: Model, kind: str, count: int, end: float) -> bool:
    """Disturb runs until ``count`` faults of a kind are stored; return whether there was time for all of them."""
    while True:
        number = sum(p["model"] == model.name and p["kind"] == kind for p in store.points)
        if number >= count:
            return True
        if time.monotonic() > end:
            return False
        points = TRIALS[kind](model, number, count - number, end)
        points = points or [{"phase": "end", "outcome": "skipped: the run ended before the fault"}]
        for more, point in enumerate(points):
            store.add({"model": model.name, "kind": kind, "number": number + more, **point})
            print(f"{model.name} {kind} {number + more}: {point['outcome']} ({point['phase']})", file=sys.stderr)


def show(result: Result) -> None:
    """Print the table, and every outcome that is not as it should be."""
    from benchmarks import page

    page.show(result)
    for point in result.points:
        if point["outcome"].startswith(("LOST", "unexpected")):
            print({k: v for k, v in point.items() if v not in ("", [], None)})
    print(dict(Counter(p["outcome"] for p in result.points)))


if __name__ == "__main__":
    sys.exit(main())
