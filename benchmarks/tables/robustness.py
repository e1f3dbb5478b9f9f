"""Tables of faults and of hostile inputs."""

from __future__ import annotations

from benchmarks.store import Result
from benchmarks.tables.row import Row, grouped, of

UNWANTED = {"traceback": "tracebacks", "hang": "hangs", "memory": "over the memory limit", "crash": "crashes"}


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


def fuzz(result: Result) -> list[Row]:
    """Mutated inputs of each kind that were refused with an error that names the fault, or accepted."""
    made = []
    for (target,), points in grouped(result.points, "target").items():
        total = {kind: sum(of(points, kind)) for kind in ("refused", "accepted", *UNWANTED)}
        made.append(
            Row(
                f"mutated: {target}",
                f"{total['refused']} refused, {total['accepted']} accepted",
                f"≤ {max(of(points, 'slowest')):.1f} s, ≤ {max(of(points, 'peak_mb'))} MB each",
                str(sum(total.values())),
                ", ".join(f"{total[kind]} {plural}" for kind, plural in UNWANTED.items()),
            )
        )
    return made
