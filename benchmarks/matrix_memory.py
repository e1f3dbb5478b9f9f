"""Memory and time of the matrix stage, tiled (in PyTorch, and compiled) against materialised, over the tokens.

    python benchmarks/matrix_memory.py

One layer of SmolLM2-135M's shape (9 heads, 3 key heads, 64 wide) with a Discrete-Mamba-2 student (N = 64), float32,
forward and backward of ``matrix_distance``. Every point runs in a fresh process; its memory is the peak resident size
after the first forward and backward pass minus the peak after importing torch and warming it up, so it counts inputs,
gradients and workspace. Its time is the fastest of the repeats, by the clock and in CPU time. Writes a JSON file and
prints a table.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import subprocess
import sys
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

HEADS, KEY_HEADS, WIDTH, STATE = 9, 3, 64, 64
LENGTHS = [1024, 2048, 4096, 8192, 16384]
LONGEST_DENSE = 4096
BACKENDS = {"tiled": "torch", "compiled": "cpp", "dense": "naive"}


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
    root = str(Path(__file__).resolve().parent.parent)
    environment = os.environ | {
        "OMP_NUM_THREADS": str(threads),
        "PYTHONPATH": os.pathsep.join(filter(None, [root, os.environ.get("PYTHONPATH")])),
    }
    done = subprocess.run(point, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def slope(points: list[dict[str, Any]], key: str) -> float | None:
    """Least-squares exponent of a quantity in the number of tokens."""
    if len(points) < 2:
        return None
    x, y = [math.log(p["length"]) for p in points], [math.log(p[key]) for p in points]
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    rise = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True))
    return round(rise / sum((a - mean_x) ** 2 for a in x), 3)


def cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def report(points: list[dict[str, Any]], threads: int) -> dict[str, Any]:
    from importlib.metadata import version

    by = {form: [p for p in points if p["form"] == form] for form in BACKENDS}
    at = {(p["form"], p["length"]): p for p in points}
    ratios: dict[str, Any] = {}
    doubling: dict[str, float] = {}
    for form in ("tiled", "compiled"):
        shared = sorted({p["length"] for p in by[form]} & {p["length"] for p in by["dense"]})
        ratios[form] = {
            str(n): {
                "times_faster": round(at["dense", n]["seconds"] / at[form, n]["seconds"], 2),
                "times_less_cpu": round(at["dense", n]["cpu_seconds"] / at[form, n]["cpu_seconds"], 2),
                "times_leaner": round(at["dense", n]["peak_mib"] / at[form, n]["peak_mib"], 2),
            }
            for n in shared
        }
        if (form, 4096) in at and (form, 8192) in at:
            doubling[form] = round(at[form, 8192]["peak_mib"] / at[form, 4096]["peak_mib"], 3)
    tiled_over_compiled = {
        str(p["length"]): round(at["tiled", p["length"]]["cpu_seconds"] / p["cpu_seconds"], 2) for p in by["compiled"]
    }
    return {
        "benchmark": "matrix_memory",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "machine": {
            "cpu": cpu_name(),
            "cores": os.cpu_count(),
            "threads": threads,
            "system": platform.system(),
            "load_1min": round(os.getloadavg()[0], 1),
        },
        "versions": {"python": platform.python_version(), "torch": version("torch")},
        "shape": {
            "batch": 1,
            "heads": HEADS,
            "key_heads": KEY_HEADS,
            "head_width": WIDTH,
            "state": STATE,
            "dtype": "float32",
            "tile": [128, 128],
        },
        "unit": {
            "peak_mib": "MiB over the warmed-up import",
            "seconds": "wall clock, forward and backward, fastest repeat",
            "cpu_seconds": "the same in CPU time, which other processes on the machine disturb less",
        },
        "points": points,
        "log_log_slope": {
            form: {"memory": slope(found, "peak_mib"), "time": slope(found, "cpu_seconds")}
            for form, found in by.items()
        },
        "dense_over": ratios,
        "tiled_over_compiled_cpu_seconds": tiled_over_compiled,
        "peak_8192_over_4096": doubling,
    }


def table(result: dict[str, Any]) -> str:
    lines = [f"{'tokens':>7}  {'form':<8} {'peak MiB':>9} {'seconds':>8} {'CPU s':>8}"]
    lines += [
        f"{p['length']:>7}  {p['form']:<8} {p['peak_mib']:>9.1f} {p['seconds']:>8.3f} {p['cpu_seconds']:>8.3f}"
        for p in result["points"]
    ]
    for form, exponents in result["log_log_slope"].items():
        lines.append(f"{form}: memory ~ L^{exponents['memory']}, time ~ L^{exponents['time']}")
    for form, ratios in result["dense_over"].items():
        for length, ratio in ratios.items():
            lines.append(
                f"{form}, {length} tokens: {ratio['times_faster']}x faster, {ratio['times_leaner']}x leaner than dense"
            )
    lines.append(f"compiled, times less CPU than tiled: {result['tiled_over_compiled_cpu_seconds']}")
    lines.append(f"peak at 8192 tokens / peak at 4096: {result['peak_8192_over_4096']}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--lengths", type=int, nargs="+", default=LENGTHS)
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "results" / "matrix_memory.json")
    parser.add_argument("--point", nargs=2, metavar=("FORM", "LENGTH"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.point:
        print(json.dumps(measure(args.point[0], int(args.point[1]), args.repeats, args.threads)))
        return
    points = []
    for length in args.lengths:
        for form in BACKENDS:
            if form != "dense" or length <= LONGEST_DENSE:
                points.append(fresh(form, length, args.repeats, args.threads))
                print(json.dumps(points[-1]), file=sys.stderr)
    result = report(points, args.threads)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(table(result))


if __name__ == "__main__":
    main()
