"""Tables of radiance fields."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from benchmarks.store import Result
from benchmarks.tables.row import Points, Row, grouped, mean, of, spread


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
