"""Tables of what conversions cost and of what their students reach."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence

from benchmarks.store import Result, unfolded
from benchmarks.tables.row import Row, grouped, mean, of, spread


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


def constant_state(result: Result) -> list[Row]:
    """Divergence and perplexity of every arm at equal bytes, beside the float32 window's."""
    found = []
    for (layers, context, domain), at in grouped(result.points, "layers", "context", "domain").items():
        base = next((p["kl"] for p in at if p["arm"] == "window float32"), math.nan)
        for p in at:
            rival = f"{p['kl'] / base:.2f}× the KL of window float32" if p["arm"] != "window float32" else ""
            rival += f"; fit {p['fit_cpu_seconds']:.0f} CPU s" if p["fit_cpu_seconds"] >= 1 else ""
            figure = f"KL {p['kl']:.3f}, perplexity {p['ratio']:.3f}×, top-1 {100 * p['top1']:.1f} %"
            what = f"{layers} layers, {context} tokens, {domain}: {p['arm']}"
            found.append(Row(what, figure, f"{p['state_bytes_a_layer'] / 1000:.0f} kB a layer", "", rival))
    return found


def cache_schemes(result: Result) -> list[Row]:
    """Divergence and perplexity of every published scheme."""
    return [
        Row(
            f"{p['domain']}: {p['arm']}",
            f"KL {p['kl']:.3f}, perplexity {p['ratio']:.3f}×, top-1 {100 * p['top1']:.1f} %",
            f"{p['places']} places a head",
        )
        for p in result.points
    ]


def state_recall(result: Result) -> list[Row]:
    """Share of answers that every arm knows at each distance, beside the teacher's."""
    teacher = next(p for p in result.points if p["arm"] == "teacher")
    probes = [key for key in teacher if key.startswith(("copy.", "recall."))]
    asked = str(teacher["n"] // len(probes))
    found = []
    for p in result.points:
        for kind in ("recall", "copy"):
            at = [probe for probe in probes if probe.startswith(f"{kind}.")]
            shown = ", ".join(f"{probe.partition('.')[2]}: {100 * p[probe]:.0f} %" for probe in at)
            rival = "" if p is teacher else "teacher " + ", ".join(f"{100 * teacher[probe]:.0f} %" for probe in at)
            found.append(Row(f"{p['arm']}: {kind}", shown, "", asked, rival))
    return found


ALONE = ", answers alone"
RIVALS = {
    "encoder-decoder 20+30, shared": "decoder of 30",
    "encoder-decoder 16+22, shared": "decoder of 22",
    "encoder-decoder 13+9": "decoder of 22",
}
"""Encoder-decoder -> the decoder of its own parameters."""


def encdec_decoder(result: Result) -> list[Row]:
    """Encoder-decoders beside decoders of their parameters or work, and beside themselves without a teacher."""
    found = []
    for (task,), points in grouped(unfolded(result.points), "task").items():
        by_arm = {arm: {p.get("seed"): p for p in at} for (arm,), at in grouped(points, "arm").items()}
        for arm, at in by_arm.items():
            seen = list(at.values())
            figure = f"loss {mean(of(seen, 'nll'), 2)}, {mean((100 * r for r in of(seen, 'right')), 0)} % right"
            if arm != "teacher":
                figure += f", KL {mean(of(seen, 'kl'), 2)}; before training {mean(of(seen, 'nll_before'), 2)}"
            rival = arm.removesuffix(ALONE) if arm.endswith(ALONE) else RIVALS.get(arm, "")
            rival = rival if rival in by_arm else "decoder of 22" if arm in RIVALS else ""
            both = [seed for seed in at if seed in by_arm.get(rival, {})]
            apart = [at[seed]["nll"] - by_arm[rival][seed]["nll"] for seed in both]
            beside = f"{rival}: {statistics.mean(apart):+.2f} in loss, {spread(apart, 2)}" if apart else ""
            name = f"{task}: {arm}, {seen[0]['parameters']:.2f}× parameters"
            found.append(Row(name, figure, f"loss {spread(of(seen, 'nll'), 2)}", str(len(seen)), beside))
    return found
