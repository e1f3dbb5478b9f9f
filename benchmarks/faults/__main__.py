"""A campaign of faults on a tiny decoder run and a tiny field run.

    python -m benchmarks.faults                        # 100 kills, 30 signals, ...; half of them for each model
    python -m benchmarks.faults --kills 10 --terms 4 --models decoder

Kills (SIGKILL) and stops (SIGTERM) come at random moments of every phase, from planning to the report; the disk is full
at the beginning of every phase; the address space is limited at five levels; one bit is flipped in every file of a
finished run; a second process writes a run. Afterwards the same command is given again, without the fault. A trial is
"as undisturbed" if that ends well and student, metrics, evaluation and exports are the same bit for bit as those of a
run without faults, and "unexpected" if only the exit code is not the documented one. Trials that are done are kept; the
same command goes on where it was interrupted.
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
from benchmarks.faults.trials import LEVELS_MIB, TRIALS, flippable
from benchmarks.store import Result, Store, add_options, header
from xarch.files.home import cache_dir


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.faults", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--kills", type=int, default=100, metavar="N", help="SIGKILLs, over all models")
    parser.add_argument("--terms", type=int, default=30, metavar="N", help="SIGTERMs, over all models")
    parser.add_argument("--seconds", type=float, default=14400, metavar="S", help="start no trial after this time")
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
    end, complete = time.monotonic() + chosen.seconds, True
    for name in chosen.models:
        model = Model(name, chosen.work / store.key / name)
        model.make()
        each = {"kill": -(-chosen.kills // len(chosen.models)), "term": -(-chosen.terms // len(chosen.models))}
        each |= {"full disk": len(model.phases), "memory": len(LEVELS_MIB), "flip": len(flippable(model))}
        each["two processes"] = 5
        for kind in chosen.kinds:
            for number in range(each[kind]):
                if store.find(model=name, kind=kind, number=number) is not None:
                    continue
                if time.monotonic() > end:
                    complete = False
                    break
                point = {"model": name, "kind": kind, "number": number, **TRIALS[kind](model, number)}
                print(f"{name} {kind} {number}: {point['outcome']} ({point['phase']})", file=sys.stderr, flush=True)
                store.add(point)
    show(store.finish() if complete else store.result)
    return int(any(p["outcome"].startswith(("LOST", "unexpected")) for p in store.points))


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
