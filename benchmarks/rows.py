"""What a table says of each benchmark: its points summed up, each figure with its spread and its rival.

One function a benchmark, by name in :data:`ROWS`; :mod:`benchmarks.page` draws the rows. A result of any other name
must have points that are rows already (keys as in :class:`Row`), as those of studies are.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from benchmarks.kernels.times import busy
from benchmarks.store import Result

Points = Sequence[dict[str, Any]]


@dataclass(frozen=True)
class Row:
    """One line of a table.

    Attributes:
        what: what was measured.
        figure: the mean over seeds, the fastest repeat, or the median, as the benchmark says.
        spread: least and most over seeds or repeats.
        seeds: how many seeds or repeats.
        rival: what the figure is to be compared with, from the same result; empty where none was measured.
    """

    what: str
    figure: str
    spread: str = ""
    seeds: str = ""
    rival: str = ""


def rows(result: Result) -> list[Row]:
    """The table of a result."""
    name = result.benchmark
    found = next((make for known, make in ROWS.items() if name == known or name.startswith(f"{known}_")), ready)
    return found(result)


def ready(result: Result) -> list[Row]:
    """Points that are rows already."""
    return [Row(**{key: str(value) for key, value in point.items()}) for point in result.points]


def mean(values: Iterable[float], digits: int = 1) -> str:
    return f"{statistics.mean(values):.{digits}f}"


def spread(values: Iterable[float], digits: int = 1) -> str:
    """Least and most; once if they look alike."""
    values = list(values)
    return "–".join(dict.fromkeys(f"{v:.{digits}f}" for v in (min(values), max(values))))


def grouped(points: Points, *keys: str) -> dict[tuple[Any, ...], list[dict[str, Any]]]:
    """Points by the values of some keys, in the order of their first appearance."""
    found: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for point in points:
        found.setdefault(tuple(point.get(k) for k in keys), []).append(point)
    return found


def of(points: Points, *path: str) -> list[Any]:
    """One value of every point that has it."""
    found: list[Any] = list(points)
    for key in path:
        found = [p[key] for p in found if isinstance(p, dict) and key in p]
    return found


def kernels(result: Result) -> list[Row]:
    """Both passes of our default backend by CPU time, beside the fastest right contender that is not ours."""
    found = []
    for (op, shape, length), at in grouped(result.points, "op", "shape", "length").items():
        ours = next((p["forward_backward"] for p in at if p["default"] and _timed(p)), None)
        if ours is None:
            continue
        cpu, clock = ours["cpu_seconds"], (ours["seconds"], ours["median_seconds"])
        figure = f"{_ms(cpu)} CPU ms, {ours['peak_mib']:.0f} MiB, "
        times = cpu / ours["floor_seconds"]
        # A kernel that is faster does less than was counted, so the count is no limit.
        figure += f"{times:.1f}× the limit ({ours['bound']})" if times >= 1 else "less work than was counted"
        clocks = f"{_ms(clock[0])} / {_ms(clock[1])} ms by the clock (least / median)"
        if "most_cpu_seconds" in ours:
            clocks = f"{_ms(cpu)}–{_ms(ours['most_cpu_seconds'])} CPU ms, {_ms(clock[0])} by the clock"
        clocks += ", busy machine" if busy(ours) else ""
        repeats = f"{ours['repeats']} repeat{'s' if ours['repeats'] > 1 else ''}"
        found.append(Row(f"{op}, {shape}, {length} tokens", figure, clocks, repeats, _peer(at, cpu)))
    return found


def _peer(at: Points, cpu: float) -> str:
    peers = [p for p in at if not p["ours"] and _timed(p)]
    if peers:
        best = min(peers, key=lambda p: p["forward_backward"]["cpu_seconds"])
        both = best["forward_backward"]
        ratio = both["cpu_seconds"] / cpu
        marked = ", busy machine" if busy(both) else ""
        return (
            f"{best['contender']} {_ms(both['cpu_seconds'])} CPU ms ({ratio:.1f}×), {both['peak_mib']:.0f} MiB{marked}"
        )
    ended = [p for p in at if not p["ours"] and "at_least" in p.get("forward_backward", {})]
    if not ended:
        return ""
    first = min(ended, key=lambda p: p["forward_backward"]["at_least"]["cpu_seconds"])
    passed = first["forward_backward"]["at_least"]["cpu_seconds"]
    return f"{first['contender']} not finished after {passed:.0f} CPU s (over {passed / cpu:.0f}×)"


def _timed(point: dict[str, Any]) -> bool:
    return "seconds" in point.get("forward_backward", {})


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def conversion_speed(result: Result) -> list[Row]:
    """Tokens per CPU second, medians over the runs."""
    found = []
    done = [p for p in result.points if p["status"] == "done"]
    for ((length,), at), stage in itertools.product(grouped(done, "length").items(), ("matrix", "hidden")):
        speeds = {way: of(ps, stage, "tokens_per_cpu_s") for (way,), ps in grouped(at, "way").items()}
        peaks = {way: statistics.median(of(ps, "peak_mib")) for (way,), ps in grouped(at, "way").items()}
        ours = statistics.median(speeds.get("xarch", [math.nan]))
        for way, values in speeds.items():
            middle = statistics.median(values)
            rival = "" if way == "xarch" else f"xarch: {ours / middle:.2f}× as fast"
            figure = f"{middle:.0f} tokens/CPU s, {peaks[way] / 1024:.1f} GiB"
            found.append(
                Row(f"{stage} stage, {length} tokens, {way}", figure, spread(values, 0), str(len(values)), rival)
            )
    return found


def matrix_memory(result: Result) -> list[Row]:
    """Memory and time over the tokens, and their exponents."""
    dense = {p["length"]: p for p in result.points if p["form"] == "dense"}
    found = []
    for p in result.points:
        against = dense.get(p["length"]) if p["form"] != "dense" else None
        rival = ""
        if against is not None:
            times = against["cpu_seconds"] / p["cpu_seconds"]
            rival = f"materialised: {against['peak_mib'] / p['peak_mib']:.1f}× the memory, {times:.1f}× the CPU time"
        figure = f"{p['peak_mib']:.1f} MiB, {p['cpu_seconds']:.3f} CPU s"
        found.append(Row(f"{FORMS[p['form']]}, {p['length']} tokens", figure, rival=rival))
    for (form,), at in grouped(result.points, "form").items():
        memory, time = (exponent([(p["length"], p[key]) for p in at]) for key in ("peak_mib", "cpu_seconds"))
        found.append(Row(f"{FORMS[form]}, growth with tokens L", f"memory ~ L^{memory:.2f}, time ~ L^{time:.2f}"))
    return found


FORMS = {"tiled": "plain PyTorch", "compiled": "C++", "dense": "materialised"}


def exponent(pairs: Sequence[tuple[float, float]]) -> float:
    """Least-squares slope in log-log; not a number for fewer than two points."""
    if len(pairs) < 2:
        return math.nan
    x, y = zip(*((math.log(a), math.log(b)) for a, b in pairs), strict=True)
    return statistics.linear_regression(x, y).slope


def engine_overhead(result: Result) -> list[Row]:
    """CPU time of a step of the engine over that of a plain loop, pair by pair."""
    found = []
    for (width, batch), points in grouped(result.points, "width", "batch").items():
        ratios = sorted(p["ratio"] for p in points)
        loop = statistics.median(p["loop_ms"] for p in points)
        found.append(
            Row(
                f"residual network of width {width}, batch of {batch}",
                f"{statistics.median(ratios):.2f} times the plain loop",
                spread(ratios, 2),
                str(len(points)),
                f"plain loop, {loop:.2f} CPU ms a step",
            )
        )
    return found


def streamed_memory(result: Result) -> list[Row]:
    """Streamed against summed losses, over the depth."""
    return [
        Row(f"{p['layers']} layers", f"{p['streamed_mib']:.0f} MiB", rival=f"losses summed: {p['summed_mib']:.0f} MiB")
        for p in result.points
    ]


def smollm2(result: Result) -> list[Row]:
    """Quality over seeds, beside the untrained start."""
    found = []
    names = {"perplexity_ratio": "perplexity / teacher's", "kl": "KL, nats/token", "top1_agreement": "top-1 agreement"}
    for key, what in names.items():
        values, before = of(result.points, "student", key), of(result.points, "before_training", key)
        rival = f"before training: {mean(before, 3)} ({spread(before, 3)})" if before else ""
        found.append(Row(what, mean(values, 3), spread(values, 3), str(len(values)), rival))
    return found


def any_to_any(result: Result) -> list[Row]:
    """Pairs of fields: PSNR to the teacher and CPU seconds; beside it both against the scene."""
    found = []
    for (source, target), at in grouped(result.points, "source", "target").items():
        psnr, seconds, truth = (of(at, k) for k in ("psnr_teacher", "cpu_seconds", "psnr_truth"))
        teacher = result.facts["teachers"][source]["psnr_truth"]
        rival = f"to the scene {mean(truth)} dB, teacher {teacher:.1f}"
        figure, between = f"{mean(psnr)} dB, {mean(seconds, 0)} s", f"{spread(psnr)} dB, {spread(seconds, 0)} s"
        figure += " (copied)" if source == target else ""
        found.append(Row(f"{source} → {target}", figure, between, str(len(at)), rival))
    return found


def active_levels(result: Result) -> list[Row]:
    """The recipe against itself without its levels."""
    found = []
    for (arch,), at in grouped(result.points, "student").items():
        with_levels, without = ([p for p in at if p["way"] == way] for way in ("levels", "without"))
        for key, what in (("psnr_teacher", "mean of the views"), ("worst_psnr_teacher", "worst view")):
            plain = {p["seed"]: p[key] for p in without}
            gains = [p[key] - plain[p["seed"]] for p in with_levels if p["seed"] in plain]
            if gains:
                values = of(with_levels, key)
                rival = f"without levels {mean(of(without, key))} dB; gain {statistics.mean(gains):+.2f} "
                rival += f"({min(gains):+.2f} to {max(gains):+.2f})"
                figure = f"{mean(values)} dB, {mean(of(with_levels, 'cpu_seconds'), 0)} s"
                found.append(Row(f"{arch}, {what}", figure, f"{spread(values)} dB", str(len(gains)), rival))
    return found


def edited(result: Result) -> list[Row]:
    """Edited teachers, converted."""
    limits, found = result.facts["limits"], []
    for (edit,), at in grouped(result.points, "edit").items():
        matter = of(at, "psnr_matter")
        rival = ""
        if edit == "erase":
            before = [p["alpha"]["max"] for p in result.points if p["edit"] == "before"]
            rival = f"alpha in the erased box at most {max(of(at, 'alpha', 'max')):.3f}, before {max(before):.2f}; "
            rival += f"limits: {limits['alpha']}, {limits['psnr']} dB"
        figure = f"{mean(matter)} dB on matter, {mean(of(at, 'psnr'))} dB, {mean(of(at, 'cpu_seconds'), 0)} s"
        if edit == "erase" and (min(matter) < limits["psnr"] or max(of(at, "alpha", "max")) >= limits["alpha"]):
            figure += ", limit missed"
        found.append(Row(edit, figure, f"{spread(matter)} dB", str(len(at)), rival))
    return found


def exported(result: Result) -> list[Row]:
    """Points per CPU second in onnxruntime; the rival is the hash field in its default form, the usual teacher."""
    first = result.points[0]["mpoints_per_cpu_second"]
    found = []
    for i, p in enumerate(result.points):
        form = p.get("hash") or p.get("grids")
        speed = p["mpoints_per_cpu_second"]
        what = ", ".join(filter(None, (p["target"], p["preset"], form)))
        rival = "" if i == 0 else f"{speed / first:.2f}× hash"
        between = spread(p["between"], 2) if "between" in p else ""
        found.append(Row(what, f"{speed:.2f} M points/CPU s, {p['bytes'] / 1e6:.1f} MB", between, rival=rival))
    return found


def round_trips(result: Result) -> list[Row]:
    """Files read again, against what was written."""
    found, limits = [], result.facts["limits"]
    for (arch, file), at in grouped(result.points, "field", "file").items():
        values, baked = of(at, "psnr_read_again"), of(at, "psnr_baked")
        rival = [f"limit {limits[file]:.0f} dB"] if file in limits else []
        rival += [f"baking first: {mean(baked)} dB to the field"] if baked else []
        figure = f"{mean(values)} dB" + (", limit missed" if min(values) < limits.get(file, 0) else "")
        found.append(Row(f"{arch} → {file}", figure, spread(values), str(len(at)), "; ".join(rival)))
    return found


def speed_up(result: Result) -> list[Row]:
    """Seconds to a quality, by conversion and from pictures, best against best; what is lost after a longer one."""
    found = []
    for (arch,), at in grouped(result.points, "student").items():
        parts = {part: ps for (part,), ps in grouped(at, "part").items()}
        mine = of(parts.get("convert", []), "cpu_seconds")
        if mine:
            rival = [_training(part, parts[part], mine) for part in GRIDS if part in parts]
            rival.append(f"the teacher's {result.facts['teacher']['cpu_seconds']:.0f} s are not counted")
            what = f"{arch}, until {result.facts['wanted']} dB to the scene{_searched(parts['convert'])}"
            figure = f"{mean(mine)} s{at_rate(parts['convert'])}"
            found.append(Row(what, figure, spread(mine), str(len(mine)), "; ".join(rival)))
        if "drop" in parts:
            drop, seconds = of(parts["drop"], "drop"), of(parts["drop"], "cpu_seconds")
            figure = f"{mean(drop, 2)} dB below the teacher, {mean(seconds, 0)} s"
            found.append(Row(f"{arch}, longer conversion", figure, f"{spread(drop, 2)} dB", str(len(drop))))
    return found


GRIDS = {"own": "own grid", "given": "teacher's grid", "uniform": "no grid"}


def _training(part: str, at: Points, mine: Sequence[float]) -> str:
    """A training from pictures; marked where not every seed got there."""
    seconds = of(at, "cpu_seconds")
    over = "" if all(p["reached"] for p in at) else "over "
    ratio = statistics.mean(seconds) / max(statistics.mean(mine), 1e-9)
    batch = f", {at[0]['rays']} rays × {at[0]['samples']}" if "rays" in at[0] else ""
    taken = f"{over}{mean(seconds, 0)} s ({over}{ratio:.1f}×, {len(at)} seeds{batch}{_searched(at)})"
    return f"from pictures, {GRIDS[part]}: {taken}"


def _searched(at: Points) -> str:
    """How many settings the first seed tried; further seeds start from its choice."""
    return f", best of {len(at[0]['tried'])} settings" if len(at[0].get("tried", ())) > 1 else ""


REFERENCE_GFLOPS = 100
"""Rate of one core at which seconds are comparable: two hardware threads of one core halve what a CPU second does."""


def at_rate(points: Points) -> str:
    """The mean of the CPU seconds at :data:`REFERENCE_GFLOPS`, in brackets; empty where no rate was measured."""
    if not all("gflops" in p for p in points):
        return ""
    seconds = statistics.mean(p["cpu_seconds"] * p["gflops"] / REFERENCE_GFLOPS for p in points)
    return f" ({seconds:.1f} s at {REFERENCE_GFLOPS} GFLOP/s)"


def staged(result: Result) -> list[Row]:
    """All stages against rendered rays alone, in equal seconds."""
    found = []
    for (arch, seconds, plain), at in grouped(result.points, "student", "seconds", "plain").items():
        stages, rays = ([p for p in at if p["way"] == way] for way in ("staged", "rays"))
        if stages:
            values, taken = of(stages, "psnr_teacher"), of(stages, "cpu_seconds")
            other = of(rays, "psnr_teacher")
            rival = f"rays alone {mean(other)} dB ({spread(other)}) in " if rays else ""
            rival += f"{mean(of(rays, 'cpu_seconds'))} s" if rays else ""
            what = f"{arch}, {seconds:g} s given" + (", only occupancy inherited" if plain else "")
            found.append(Row(what, f"{mean(values)} dB in {mean(taken)} s", spread(values), str(len(values)), rival))
    return found


def plan_accuracy(result: Result) -> list[Row]:
    """Planned and real time and memory of whole conversions; the factor between them."""
    found = []
    for point in result.points:
        for what, unit, scale in (("seconds", "s", 1.0), ("bytes", "GB", 1e9)):
            planned, real = point[f"planned_{what}"] / scale, point[what] / scale
            factor = max(planned / real, real / planned)
            name = f"{point['case']}: {'time' if what == 'seconds' else 'memory'}"
            found.append(Row(name, f"×{factor:.2f}", f"planned {planned:.3g} {unit}", "1", f"took {real:.3g} {unit}"))
    return found


def faults(result: Result) -> list[Row]:
    """Trials of each kind that ended as they should, with the phases they met."""
    made = []
    for (model, kind), points in grouped(result.points, "model", "kind").items():
        good = [p for p in points if p["outcome"] in ("as undisturbed", "named")]
        skipped = [p for p in points if p["outcome"].startswith("skipped")]
        lost = [p for p in points if p["outcome"].startswith("LOST")]
        other = len(points) - len(good) - len(skipped) - len(lost)
        figure = f"{len(good)} as they should be" + (f", {len(skipped)} skipped" if skipped else "")
        phases = len({p["phase"] for p in points})
        what = "files" if kind == "flip" else "limits" if kind == "memory" else "phases"
        rival = f"{len(lost)} lost, {other} with another exit code"
        made.append(Row(f"{model}: {kind}", figure, f"{phases} {what}", str(len(points)), rival))
    return made


ROWS: dict[str, Callable[[Result], list[Row]]] = {
    "kernels": kernels,
    "conversion_speed": conversion_speed,
    "matrix_memory": matrix_memory,
    "plan_accuracy": plan_accuracy,
    "engine_overhead": engine_overhead,
    "streamed_memory": streamed_memory,
    "faults": faults,
    "smollm2": smollm2,
    "fields_any_to_any": any_to_any,
    "fields_active_levels": active_levels,
    "fields_edited": edited,
    "fields_exported": exported,
    "fields_round_trips": round_trips,
    "fields_speed_up": speed_up,
    "fields_staged": staged,
}
"""Benchmark -> its table; also for longer names that start with it and an underscore."""
