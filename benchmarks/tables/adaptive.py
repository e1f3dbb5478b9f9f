"""Tables of adaptive models."""

from __future__ import annotations

from benchmarks.store import Result
from benchmarks.tables.row import Row, grouped


def acm_speed(result: Result) -> list[Row]:
    """CPU time of every form of a model or module beside the dense one, and the share of multiply-adds it takes."""
    found = []
    for (part, modules, width, tokens), at in grouped(result.points, "part", "modules", "width", "tokens").items():
        dense = next(p for p in at if p["form"] == "dense")
        what = {
            "model": f"ViT-S, {modules}",
            "module": f"one MLP, width {width}",
            "torch": f"one MLP in torch, width {width}, {tokens} tokens",
            "decode": f"SmolLM2-135M, {modules}, a token at batch 1",
        }[part]
        repeats = f"{result.header['settings']['repeats']} repeats"
        for point in at:
            if point is dense:
                continue
            share, form = point["of_dense"], point["form"]
            runs = "computes all" if form.startswith("masked") else f"learners and gates {point['executed']:.3f}"
            figure = f"{point['cpu_ms']:.1f} CPU ms, {share:.3f} of dense, {1 / share:.2f}× as fast; {runs}"
            spread, rival = f"median {point['median_cpu_ms']:.1f}", f"dense {dense['cpu_ms']:.1f} CPU ms"
            found.append(Row(f"{what}: {form}", figure, spread, repeats, rival))
    return found
