"""Memory and time of the matrix stage, tiled (in PyTorch, and compiled) against materialised, over the tokens.

    python benchmarks/matrix_memory.py

One layer of SmolLM2-135M's shape (9 heads, 3 key heads, 64 wide) with a Discrete-Mamba-2 student (N = 64), float32,
forward and backward of ``matrix_distance``. Every point runs in a fresh process; its memory is the peak resident size
after the first forward and backward pass minus the peak after importing torch and warming it up, so it counts inputs,
gradients and workspace. Its time is the fastest of the repeats, by the clock and in CPU time. Points are written as
they are measured, and an interrupted run resumes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from benchmarks import page  # noqa: E402
from benchmarks.store import Store, add_options, header  # noqa: E402

HEADS, KEY_HEADS, WIDTH, STATE = 9, 3, 64, 64
LENGTHS = [1024, 2048, 4096, 8192, 16384]
LONGEST_DENSE = 4096
BACKENDS = {"tiled": "torch", "compiled": "cpp", "dense": "naive"}
SETTINGS = {
    "batch": 1,
    "heads": HEADS,
    "key_heads": KEY_HEADS,
    "head_width": WIDTH,
    "state": STATE,
    "dtype": "float32",
    "tile": [128, 128],
}


def measure(form: str, length: int, repeats: int, threads: int) -> dict[str, Any]:
    """One point; call it in a fresh process."""
    import resource
    import time

    import torch

    from xarch.kernels import matrix_distance

    def run(tokens: int) -> tuple[float, float]:
        torch.manual_seed(0)
        q, k = torch.randn(1, tokens, HEADS, WIDTH), torch.randn(1, tokens, KEY_HEADS, WIDTH)
        C = (torch.randn(1, tokens, HEADS, STATE) / STATE).requires_grad_()
        B = torch.randn(1, tokens, HEADS, STATE, requires_grad=True)
        # Half-lives around 38 tokens, where the decays of a freshly initialised student lie.
        log_a = (-torch.nn.functional.softplus(torch.randn(1, tokens, HEADS) / 2 - 4)).requires_grad_()
        D = torch.full((HEADS,), 0.1, requires_grad=True)
        start, start_cpu = time.perf_counter(), time.process_time()
        found = matrix_distance(q, k, C, B, log_a, D, scale=WIDTH**-0.5, backend=BACKENDS[form])
        found.distance_BH.mean().backward()
        return time.perf_counter() - start, time.process_time() - start_cpu

    def peak_kib() -> int:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss

    torch.set_num_threads(threads)
    run(16)
    baseline = peak_kib()
    seconds = [run(length)]
    peak = peak_kib() - baseline
    seconds += [run(length) for _ in range(repeats - 1)]
    return {
        "form": form,
        "length": length,
        "peak_mib": round(peak / 1024, 1),
        "seconds": round(min(wall for wall, _ in seconds), 4),
        "cpu_seconds": round(min(cpu for _, cpu in seconds), 4),
    }


def fresh(form: str, length: int, repeats: int, threads: int) -> dict[str, Any]:
    """One point in its own process."""
    point = [
        sys.executable,
        __file__,
        "--point",
        form,
        str(length),
        "--repeats",
        str(repeats),
        "--threads",
        str(threads),
    ]
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(point, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    add_options(parser, "matrix_memory")
    parser.add_argument("--point", nargs=2, metavar=("FORM", "LENGTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(args.point[0], int(args.point[1]), args.repeats, args.threads)))
        return
    settings = SETTINGS | {"repeats": args.repeats}
    store = Store(args.out, header("matrix_memory", settings, threads=args.threads), args.fresh)
    for length in args.lengths:
        for form in BACKENDS:
            missing = store.find(form=form, length=length) is None
            if missing and (form != "dense" or length <= LONGEST_DENSE):
                point = fresh(form, length, args.repeats, args.threads)
                print(json.dumps(store.add(point | {"load_1min": round(os.getloadavg()[0], 1)})), file=sys.stderr)
    page.show(store.finish())


if __name__ == "__main__":
    main()
