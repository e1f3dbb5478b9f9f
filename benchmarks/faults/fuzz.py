"""Reads mutated inputs of every kind that people hand to xarch, and classes what comes of them.

    python benchmarks/faults/fuzz.py                      # the campaign: some 15,000 inputs
    python benchmarks/faults/fuzz.py --cases 500 --only GGUF,pictures

Every input is made from a seed and read in a forked child with a limit of CPU time and memory. It is *refused* (an
error that names the fault), *accepted* (the change does no harm), or something that must not be: a *traceback*, a
*hang*, more *memory* than the limit, a *crash* of the process. An interrupted campaign resumes.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("OMP_NUM_THREADS", "1")
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from benchmarks import store
from benchmarks.faults.fuzzing import binary_targets, harness, picture_targets, text_targets

TARGETS = (*text_targets.TARGETS, *binary_targets.TARGETS, *picture_targets.TARGETS)
BLOCK = 250
"""Cases of a point in the result file."""


def campaign(kept: store.Store, cases: int, only: Sequence[str], seed: int) -> bool:
    """Run what is not in the result yet; return whether nothing was found that must not be."""
    import torch

    torch.set_num_threads(1)
    for target in TARGETS:
        if only and target.name not in only:
            continue
        total = max(1, round(cases * target.share / sum(t.share for t in TARGETS)))
        blocks = [range(at, min(at + BLOCK, total)) for at in range(0, total, BLOCK)]
        missing = [b for b in blocks if kept.find(target=target.name, start=b.start, stop=b.stop) is None]
        if not missing:
            continue
        with tempfile.TemporaryDirectory(prefix="fuzz-") as folder:
            prepared = Path(folder)
            target.prepare(prepared)
            for block in missing:
                found = harness.run(target, block, seed, prepared)
                kept.add(
                    {
                        "target": target.name,
                        "start": block.start,
                        "stop": block.stop,
                        **{kind: found.counts[kind] for kind in harness.CLASSES},
                        "slowest": found.seconds,
                        "peak_mb": found.peak >> 20,
                        "found": [place.replace(folder, "FOLDER") for place in found.found],
                    }
                )
    show(kept.result)
    return not any(point["found"] for point in kept.points)


def show(result: store.Result) -> None:
    """Print the table: one line a target, then every finding."""
    print(
        f"{'input':24}{'cases':>7}" + "".join(f"{kind:>11}" for kind in harness.CLASSES) + f"{'slowest':>9}{'peak':>9}"
    )
    for name in dict.fromkeys(point["target"] for point in result.points):
        points = [p for p in result.points if p["target"] == name]
        counts = "".join(f"{sum(p[kind] for p in points):>11}" for kind in harness.CLASSES)
        cases = sum(p["stop"] - p["start"] for p in points)
        slowest, peak = max(p["slowest"] for p in points), max(p["peak_mb"] for p in points)
        print(f"{name:24}{cases:>7}{counts}{slowest:>7.1f} s{peak:>6} MB")
    for point in result.points:
        for place in point["found"]:
            print(f"  {place}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=15_000, help="inputs over all targets")
    parser.add_argument("--only", default="", help="targets, separated by commas")
    parser.add_argument("--seed", type=int, default=1)
    store.add_options(parser, "fuzz")
    said = parser.parse_args()
    settings = {"seed": said.seed, "cases": said.cases, "cpu_seconds": harness.CPU_SECONDS, "memory": harness.MEMORY}
    kept = store.Store(said.out, store.header("fuzz", settings, threads=1), said.fresh)
    sound = campaign(kept, said.cases, [name for name in said.only.split(",") if name], said.seed)
    if not said.only:
        kept.finish()
    sys.exit(0 if sound else 1)


if __name__ == "__main__":
    main()
