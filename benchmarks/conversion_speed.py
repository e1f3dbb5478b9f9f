"""Tokens per second of the matrix and hidden stages of a real conversion, SmolLM2-135M to DM2 in all 30 layers.

    python benchmarks/conversion_speed.py --threads 1
    python benchmarks/conversion_speed.py --device cuda --lengths 2048 8192

Three ways through the same stages, each in its own process and in turns, several times: ``xarch convert`` with the
kernels it chooses, ``xarch convert`` with ``XARCH_KERNELS=torch``, and the published recipe
(:mod:`benchmarks.published_recipe`; needs mamba-ssm, see there). The data is text that every machine with Python has.
Reported are tokens over the training time of a stage, by the clock and by CPU time, which other processes disturb less
(median, least and most over the runs), and the peak resident memory of the process; the published recipe must first
give the same losses as xarch on one batch. The result is written after every run, and an interrupted command resumes.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "plugins")]

from benchmarks.store import SCRATCH, Result, Store, header  # noqa: E402

STAGES = ("matrix", "hidden")
WAYS = {"xarch": "", "xarch, plain PyTorch": "torch", "published recipe": ""}
AGREEMENT = 1e-3
"""Relative difference allowed between the losses of the published recipe and of xarch on one batch."""


def configuration(
    length: int, steps: int, teacher: str = "zoo:smollm2-135m", data: str = "text:python-stdlib"
) -> dict[str, Any]:
    """A run of the two stages, with next to no evaluation."""
    stage = {"trains": {"mixers": {}}, "units": steps * length, "batch": 1, "optimiser": {"lr": 1e-4}, "log_every": 1}
    return {
        "teacher": teacher,
        "student": {"target": "dm2"},
        "data": {"ref": data, "sample": {"length": length}},
        "stages": {
            "matrix": stage | {"matches": {"mixing": {"student": "matrix", "objective": "frobenius"}}},
            "hidden": stage | {"matches": {"blocks": {"student": "output", "objective": "l2"}}},
        },
        "evaluate": {"samples": 1, "batch": 1, "sample": {"length": 16}, "baseline": False},
        "export": {"profiles": []},
    }


def through_xarch(folder: Path, config: dict[str, Any], device: str) -> dict[str, Any]:
    """In the process of its own: the whole command, then what it wrote."""
    from xarch.cli.app import main as command

    path = folder / "config.yaml"
    path.write_text(json.dumps(config))
    run = folder / "run"
    arguments = ["convert", str(path), "--device", device, "--yes", "--out", str(run)]
    sys.argv = ["xarch", *arguments]
    try:
        command()
    except SystemExit as end:
        if end.code not in (0, None):
            raise
    found: dict[str, Any] = {}
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for summary in run.glob("stages/*/summary.json"):
        stage = json.loads(summary.read_text())
        losses = [r["match." + MATCH[stage["name"]]] for r in rows if r["stage"] == summary.parent.name and "loss" in r]
        found[stage["name"]] = stage["training"] | {"units": stage["units"], "losses": losses}
    return found


MATCH = {"matrix": "mixing", "hidden": "blocks"}


def through_published(config: dict[str, Any], device: str) -> dict[str, Any]:
    """The same stages by the published recipe."""
    import torch

    from benchmarks.published_recipe import disagreement, step
    from xarch import Batch, DataRequest
    from xarch.planning.resolve import resolve_data, resolve_target, resolve_teacher
    from xarch.registry.loader import get_registry

    registry, where = get_registry(), torch.device(device)
    source = resolve_teacher(registry, config["teacher"], {}, lambda text: None)
    teacher = source.adapter.load(source.ref, source.options, device=where, dtype=torch.float32)
    target = resolve_target(registry, "dm2", {})
    torch.manual_seed(0)
    student = target.adapter.build(teacher.facts, target.options, {}, device=torch.device("cpu"))
    student.module.to(where)
    target.adapter.initialise(student, teacher)
    student.module.train().requires_grad_(False)
    trained = [student.module.get_parameter(n).requires_grad_(True) for n in student.param_groups()["mixers"]]
    data = resolve_data(registry, config["data"]["ref"], {})
    processor = teacher.processor()
    found: dict[str, Any] = {}
    for name in STAGES:
        stream = data.adapter.open(
            DataRequest(
                data.ref,
                data.options,
                sample=config["data"]["sample"],
                processors={"teacher": processor, "student": processor},
                teacher=teacher,
            )
        )
        started = (time.monotonic(), time.process_time())
        adam = torch.optim.AdamW(trained, lr=1e-4, fused=True)
        losses, units = [], 0
        while units < config["stages"][name]["units"]:
            batch = next(stream).to(where)
            batch = Batch({"input_ids": batch["input_ids"]}, batch.units)
            if "disagreement" not in found:
                found["disagreement"] = disagreement(teacher, student, batch)
                if found["disagreement"] > AGREEMENT:
                    raise SystemExit(f"the published recipe computes another loss: {found['disagreement']:.2e}")
                started = (time.monotonic(), time.process_time())
            losses.append(step(teacher, student, adam, batch, name, 1.0))
            units += batch.units
        seconds, cpu_seconds = time.monotonic() - started[0], time.process_time() - started[1]
        found[name] = {"seconds": seconds, "cpu_seconds": cpu_seconds, "units": units, "losses": losses}
    return found


def in_process(way: str, config: dict[str, Any], device: str, threads: int) -> None:
    """What the fresh process of a row does; prints a JSON line."""
    import resource

    import torch

    torch.set_num_threads(threads)
    with tempfile.TemporaryDirectory() as folder:
        if way == "published recipe":
            found = through_published(config, device)
        else:
            found = through_xarch(Path(folder), config, device)
    if device == "cpu":
        found["peak_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    else:
        found["peak_mib"] = round(torch.cuda.max_memory_allocated() / 2**20)
    print("\n" + json.dumps(found), flush=True)


def row(way: str, length: int, run: int, arguments: argparse.Namespace) -> dict[str, Any]:
    """One way at one length, once."""
    threads, limit = str(arguments.threads), arguments.time_limit
    command = [sys.executable, __file__, "--one", way, "--lengths", str(length), "--steps", str(arguments.steps)]
    command += ["--device", arguments.device, "--threads", threads]
    command += ["--teacher", arguments.teacher, "--data", arguments.data]
    environment = os.environ | {"OMP_NUM_THREADS": threads, "XARCH_KERNELS": WAYS[way]}
    result: dict[str, Any] = {"way": way, "length": length, "run": run, "load_1min": round(os.getloadavg()[0], 1)}
    try:
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return result | {"status": f"over the time limit of {limit:.0f} s"}
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        return result | {"status": f"failed: {last[:200]}"}
    found = json.loads(done.stdout.strip().splitlines()[-1])
    for name in STAGES:
        for clock, key in CLOCKS.items():
            found[name][key] = round(found[name]["units"] / found[name][clock], 1)
    return result | {"status": "done"} | found


CLOCKS = {"seconds": "tokens_per_s", "cpu_seconds": "tokens_per_cpu_s"}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Median, least and most over the finished runs of every way and length."""
    found = []
    for length, way in dict.fromkeys((r["length"], r["way"]) for r in rows):
        runs = [r for r in rows if (r["length"], r["way"], r["status"]) == (length, way, "done")]
        if not runs:
            continue
        entry: dict[str, Any] = {"way": way, "length": length, "runs": len(runs)}
        for name in STAGES:
            entry[name] = {key: _spread([r[name][key] for r in runs]) for key in CLOCKS.values()}
        entry["peak_mib"] = _spread([r["peak_mib"] for r in runs])
        found.append(entry)
    return found


def _spread(values: list[float]) -> dict[str, float]:
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def ratios(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """How much faster and leaner the chosen kernels are than each other way at the same length, by medians."""
    entries = []
    for ours in (f for f in found if f["way"] == "xarch"):
        for other in (f for f in found if f["length"] == ours["length"] and f["way"] != "xarch"):
            entry: dict[str, Any] = {"length": ours["length"], "against": other["way"]}
            for name in STAGES:
                for key, label in (("tokens_per_s", "faster"), ("tokens_per_cpu_s", "faster_by_cpu_time")):
                    ratio = ours[name][key]["median"] / other[name][key]["median"]
                    entry[f"{name}_times_{label}"] = round(ratio, 2)
            entry["times_leaner"] = round(other["peak_mib"]["median"] / ours["peak_mib"]["median"], 2)
            entries.append(entry)
    return entries


def show(result: Result) -> None:
    """Medians and spreads by the clock and by CPU time, and ratios."""
    from rich.console import Console
    from rich.table import Table

    found = summary(result.points)
    teacher = result.header["settings"]["teacher"]
    table = Table(title=f"{teacher}, tokens/s by the clock and (CPU time)", title_justify="left")
    for head in ("tokens", "way", "runs", "matrix", "hidden", "peak MiB"):
        table.add_column(head, justify="left" if head == "way" else "right")
    for entry in found:
        figures = []
        for name in STAGES:
            clock, cpu = (entry[name][key] for key in CLOCKS.values())
            figures.append(
                f"{clock['median']:.0f} [{clock['min']:.0f}-{clock['max']:.0f}] "
                f"({cpu['median']:.0f} [{cpu['min']:.0f}-{cpu['max']:.0f}])"
            )
        table.add_row(
            str(entry["length"]), entry["way"], str(entry["runs"]), *figures, f"{entry['peak_mib']['median']:.0f}"
        )
    console = Console(width=140)
    console.print(table)
    for row in result.points:
        if row["status"] != "done":
            console.print(f"{row['way']}, {row['length']} tokens, run {row['run']}: {row['status']}")
    for ratio in ratios(found):
        console.print(ratio)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lengths", type=int, nargs="+", default=[512, 1024])
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--runs", type=int, default=3, help="of every way, in turns")
    parser.add_argument("--teacher", default="zoo:smollm2-135m")
    parser.add_argument("--data", default="text:python-stdlib")
    parser.add_argument("--ways", nargs="+", choices=list(WAYS), default=list(WAYS), metavar="WAY")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--time-limit", type=float, default=900, help="seconds per row")
    parser.add_argument("--out", type=Path, help="default: benchmarks/out/conversion_speed_DEVICE.json")
    parser.add_argument("--fresh", action="store_true", help="measure everything again instead of resuming")
    parser.add_argument("--one", metavar="WAY", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    import torch

    if arguments.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: PyTorch sees no CUDA device")
    if arguments.one:
        config = configuration(arguments.lengths[0], arguments.steps, arguments.teacher, arguments.data)
        in_process(arguments.one, config, arguments.device, arguments.threads)
        return
    settings = {k: getattr(arguments, k) for k in ("teacher", "data", "steps", "time_limit")}
    head = header("conversion_speed", settings, threads=arguments.threads, device=arguments.device)
    out = arguments.out or SCRATCH / f"conversion_speed_{arguments.device}.json"
    store = Store(out, head, arguments.fresh)
    for run, length, way in itertools.product(range(arguments.runs), arguments.lengths, arguments.ways):
        if store.find(way=way, length=length, run=run) is None:
            print(json.dumps(store.add(row(way, length, run, arguments)))[:400], file=sys.stderr, flush=True)
    show(store.finish())


if __name__ == "__main__":
    main()
