"""The table of exported students against their teacher."""

from __future__ import annotations

from collections.abc import Sequence

from benchmarks.store import Result
from benchmarks.tables.row import Row, grouped

RIVAL = "teacher, onnxruntime-genai"
BARS = {"memory": {256: 1.0, 1024: 1.5, 4096: 3.0, 8000: 5.0}, "hybrid": {4096: 1.5}}
"""Student -> context -> how much faster than the teacher of the same precision it is to be (int4 for all layers)."""
BOUND = 60
"""Least share of a token's time, in per cent, that reading the file and the states would take."""
RATIO = {"int8": 1.005, "int4": 1.02}
"""Largest perplexity of a file relative to its student's."""


def edge_speed(result: Result) -> list[Row]:
    """Decoding and first token by context, then bytes, then quality of the files; each beside the rival and its bar."""
    speeds = [p for p in result.points if "context" in p]
    known = {(p["precision"], p["context"]): p for p in speeds if p["arm"] == RIVAL}
    found = []
    for (precision, context), at in grouped(speeds, "precision", "context").items():
        for p in at:
            figure = f"{p['decode_cpu_ms']:.1f} CPU ms a token, first token {p['first_cpu_ms'] / 1000:.2f} CPU s"
            wall = f"wall {p['decode_wall_ms']:.0f} ms, {p['first_wall_ms'] / 1000:.1f} s; load {p['load']}"
            rival = known.get((precision, context))
            found.append(Row(f"{precision}, {context} tokens: {p['arm']}", figure, wall, "", _beside(p, rival)))
    for (arm, precision), at in grouped(speeds, "arm", "precision").items():
        p, rival = at[0], next((q for (other, _), q in known.items() if other == precision), None)
        flat = [q["decode_cpu_ms"] for q in at]
        beside = f"{p['bytes'] / rival['bytes']:.2f}× the rival's" if rival and arm != RIVAL else ""
        beside += " (bar 1.15×)" if beside and precision == "int4" else ""
        states = f"states {at[0]['state_bytes'] / 1e6:.1f} MB at {at[0]['context']}"
        states += f", {at[-1]['state_bytes'] / 1e6:.1f} MB at {at[-1]['context']} tokens"
        figure = f"{p['bytes'] / 1e6:.0f} MB, {p['nodes']} nodes; {states}"
        if "read_gb_a_second" in result.facts:
            # A token reads all weights and states once.
            bound = (p["bytes"] + p["state_bytes"]) / (1e6 * result.facts["read_gb_a_second"])
            figure += f"; {100 * bound / p['decode_cpu_ms']:.0f} % of what memory allows (bar {BOUND} %)"
        found.append(Row(f"{arm}, {precision}", figure, f"slowest context {max(flat) / min(flat):.2f}×", "", beside))
    for p in result.points:
        if "domain" in p:
            figure = f"perplexity {p['ratio']:.4f}×, KL {p['kl']:.4f}, top-1 {100 * p['top1']:.1f} %"
            bar = f"the student in float32; bar {RATIO[p['precision']]}×"
            found.append(Row(f"{p['arm']}, file in {p['precision']}, {p['domain']}", figure, "", str(p["tokens"]), bar))
    return found


FIRST = {"13+13": 0.52, "15+12": 0.52, "18+9": 0.65, "20+10 merged": 0.65}
"""Student -> longest time to the first token, in the teacher's, from prompts of 512 tokens on."""
FASTER = {"24+5": 2.7}
"""Student -> least tokens a second, in the teacher's."""
BYTES = {"files": 1.03, "resident": 1.10}
NEAR, NEAR_FROM = 0.08, 256
"""How near the predictor is to be, from which prompt on."""


def encdec_speed(result: Result) -> list[Row]:
    """Encoder-decoders: first token and tokens a second beside the teacher's, the predictor's and the bars; bytes."""
    found = []
    for p in result.points:
        if p.get("what") == "memory":
            figures = [f"{key} {p[f'{key}_mb']:.0f} MB, {p[key]:.3f}× (bar {bar})" for key, bar in BYTES.items()]
            said = f"{p['parameters']:.3f}× parameters"
            found.append(Row(f"{p['arm']}: memory", "; ".join(figures), "", "", f"teacher; {said}"))
            continue
        first, speed = FIRST.get(p["arm"]) if p["prompt"] >= 512 else None, FASTER.get(p["arm"])
        figure = f"first token {p['first_ratio']:.2f}×" + (f" (bar {first})" if first else "")
        # Of answers of 32 and 128 tokens; once, of the first alone.
        figure += f", tokens a second {_times(p['speed'])}" + (f" (bar {speed})" if speed else "")
        off = abs(p["predicted_first"] - p["first_ratio"])
        told = f"predicted {p['predicted_first']:.2f}×, {off:.2f} off"
        told += f" (bar {NEAR})" if p["prompt"] >= NEAR_FROM else ""
        told += f", {p['predicted_speed']:.2f}×"
        if "rival_first" in p:
            told += f"; beside onnxruntime-genai {p['rival_first']:.2f}×, {_times(p['rival_speed'])}"
        least, most = min(p["first_ratios"]), max(p["first_ratios"])
        row = Row(
            f"{p['arm']}, prompt of {p['prompt']}", figure, f"{least:.2f}–{most:.2f}", str(len(p["first_ratios"])), told
        )
        found.append(row)
    return found


def _times(figures: float | Sequence[float]) -> str:
    return ", ".join(f"{each:.2f}×" for each in (figures if isinstance(figures, list) else [figures]))


def _beside(p: dict[str, float | str], rival: dict[str, float] | None) -> str:
    if rival is None or p["arm"] == RIVAL:
        return ""
    decode = rival["decode_cpu_ms"] / float(p["decode_cpu_ms"])
    first = rival["first_cpu_ms"] / float(p["first_cpu_ms"])
    bar = BARS.get(str(p["arm"]).partition(",")[0], {}).get(int(p["context"]))
    wanted = f" (bar {bar:g}×)" if bar and p["precision"] == "int4" else ""
    return f"{decode:.2f}×{wanted} and {first:.2f}× as fast as {RIVAL}"
