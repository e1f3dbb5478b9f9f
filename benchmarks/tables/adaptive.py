"""Tables of adaptive models."""

from __future__ import annotations

from benchmarks.store import Result
from benchmarks.tables.row import Row, grouped


def acm_speed(result: Result) -> list[Row]:
    """CPU time of every form of a model or module beside the dense one, and the share of multiply-adds it takes."""
    found = []
    for (part, modules, width), at in grouped(result.points, "part", "modules", "width").items():
        dense = next(p for p in at if p["form"] == "dense")
        what = f"ViT-S, {modules}" if part == "model" else f"one MLP, width {width}"
        repeats = f"{result.header['settings']['repeats']} repeats"
        for point in at:
            if point is dense:
                continue
            share = point["of_dense"]
            found.append(
                Row(
                    f"{what}: {point['form']}",
                    f"{point['cpu_ms']:.1f} CPU ms, {share:.3f} of dense ({1 / share:.2f}× as fast), executed "
                    f"{point['executed']:.3f}",
                    f"median {point['median_cpu_ms']:.1f}",
                    repeats,
                    f"dense {dense['cpu_ms']:.1f} CPU ms",
                )
            )
    return found
