"""Time and peak memory of every kernel backend that runs here, against peers from package registries, in one run.

    python -m benchmarks.kernels --quick          # seconds: does everything run, and is it right
    python -m benchmarks.kernels --threads 1      # the CPU figures, three quarters of an hour
    python -m benchmarks.kernels --device cuda --dtype bfloat16      # with Phi-1.5's and Llama-3.2-1B's shapes

Every point has its own process: peak memory of the first run (inputs, results, gradients and workspace), then the
result and all gradients against float64 (the naive backend, for long cases the plain-PyTorch one), and only if they are
right the time: a first run that is not counted, then five repeats, the same for all, in processes whose allocator keeps
freed memory. Beside it stands the shortest time at the machine's limits, which are measured first. Ratios are of CPU
times. A run that does not finish in the time limit is ended: what had passed is a lower bound of its time, marked as
such; nothing is extrapolated, and it is tried on more tokens only where the project promises a ratio. The result in
``benchmarks/out`` is written after every point, and an interrupted run resumes; if code has changed since, only the
operations that use it are measured again. ``python -m benchmarks publish kernels_cpu`` makes it the published one.

Peers that are not installed are left out. On a CPU:

    pip install --no-deps mambapy mamba-stock mambax minimamba accelerated-scan assoc-scan mamba-scan-lite
    pip install wheel setuptools
    MAMBA_FORCE_BUILD=TRUE MAMBA_SKIP_CUDA_BUILD=TRUE pip install --no-build-isolation --no-deps mamba-ssm

On a GPU: ``pip install --no-build-isolation causal-conv1d mamba-ssm`` (with nvcc, or wheels of your own).
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path

from benchmarks.kernels import fresh
from benchmarks.kernels.case import Case

LENGTHS = [256, 1024, 2048, 4096, 8192, 16384]
QUICK = [96]
OPERATIONS = ["selective_scan", "ssd", "gated_delta", "causal_conv1d", "matrix_distance"]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.kernels", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help=f"{QUICK[0]} tokens, a tenth of a second per pass")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--ops", nargs="+", choices=OPERATIONS, metavar="OP", help=", ".join(OPERATIONS))
    parser.add_argument("--shapes", nargs="+", metavar="SHAPE")
    parser.add_argument("--lengths", type=int, nargs="+")
    parser.add_argument("--contenders", nargs="+", metavar="NAME", help="names or parts of names; default: all")
    parser.add_argument("--time-limit", type=float, help="seconds per run (default 120, quick 30)")
    parser.add_argument("--memory-limit", type=float, metavar="GIB", help="per point (default half of what is free)")
    parser.add_argument("--out", type=Path, help="default: benchmarks/out/kernels_DEVICE.json")
    parser.add_argument("--fresh", action="store_true", help="measure everything again instead of resuming")
    parser.add_argument("--point", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    if arguments.point:
        _point(json.loads(arguments.point), arguments.threads)
    else:
        _run(arguments)


def _point(task: dict, threads: int) -> None:
    """In the fresh process of one point."""
    fresh.enter(task["memory_gib"], threads)
    from benchmarks.kernels import point
    from benchmarks.kernels.ops import operations

    case = Case(**task["case"])
    operation = operations()[case.op]
    contender = next(c for c in operation.contenders(case) if c.name == task["contender"])
    point.measure(operation, contender, case, task["budget"], task["seconds"], Path(task["truth"]))


def _run(arguments: argparse.Namespace) -> None:
    from rich.console import Console

    from benchmarks import machine
    from benchmarks.kernels import code, limits
    from benchmarks.kernels.bars import bars
    from benchmarks.kernels.ops import operations
    from benchmarks.kernels.sweep import cases, sweep
    from benchmarks.kernels.table import show
    from benchmarks.store import SCRATCH, Store, header

    console, quick = Console(), arguments.quick
    if not console.is_terminal:
        console = Console(width=160)
    known = operations()
    chosen = [known[n] for n in arguments.ops or known]
    lengths = arguments.lengths or (QUICK if quick else LENGTHS)
    also = arguments.lengths is None and not quick
    todo = list(cases(chosen, lengths, arguments.device, arguments.dtype, arguments.shapes or [], also=also))
    bound = fresh.Limits(
        seconds=arguments.time_limit or (30 if quick else 120),
        memory_gib=arguments.memory_limit or round(machine.available_gib() / 2, 1),
        budget=0.1 if quick else 1.0,
        threads=arguments.threads,
    )
    name = f"kernels_{arguments.device}{'_quick' if quick else ''}.json"
    settings = {
        "dtype": arguments.dtype,
        "seconds_per_pass": bound.budget,
        "time_limit": bound.seconds,
        "allocator": fresh.KEEP_FREED_MEMORY,
    }
    digests = {o.name: code.digest(o.name) for o in chosen}
    head = header("kernels", settings, threads=arguments.threads, device=arguments.device, code=digests)
    store = Store(arguments.out or SCRATCH / name, head, arguments.fresh)
    if "limits" not in store.facts:
        console.print("measuring the machine's limits ...")
        store.note(limits=limits.measure(arguments.device, arguments.threads), memory_limit_gib=bound.memory_gib)
    cases_by_operation = {o.name: (o, c) for o, c in todo}.values()
    absent = {o.name: o.refused(c) | {p.name: r for p in o.peers if (r := p.absent(c))} for o, c in cases_by_operation}
    store.note(left_out=store.facts.get("left_out", {}) | absent)
    for point in sweep(todo, store, bound, store.facts["limits"], arguments.contenders or [""]):
        both = point.get("forward_backward", {}).get("cpu_seconds")
        figure = f"{both * 1e3:10.2f} CPU ms" if both else point["status"]
        console.print(
            f"{point['op']:16s} {point['shape']:18s} {point['length']:6d}  {point['contender']:42s} {figure}",
            highlight=False,
        )
    result = store.finish()
    show(console, result, bars(result.points, result.facts["limits"]))


if __name__ == "__main__":
    main()
