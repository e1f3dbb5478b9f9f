"""Tables of the kernels."""

from __future__ import annotations

from typing import Any

from benchmarks.kernels.times import busy
from benchmarks.store import Result
from benchmarks.tables.row import Points, Row, grouped


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
