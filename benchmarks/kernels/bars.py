"""The speeds the project promises, as ratios of points of one run.

On a CPU ratios are of CPU times, which other work on the machine disturbs least, on a GPU of times by the clock. The
rival is the fastest peer whose result is right; where a promise names a kind of peer, that ratio comes second.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.kernels.times import clock

Points = list[dict[str, Any]]
ANY = ""
"""Peers of every family."""


@dataclass(frozen=True, slots=True)
class Bar:
    """One promise: ``value`` is None where one of its points was not measured to its end."""

    what: str
    against: str
    wanted: float
    value: float | None
    by_clock: float | None = None
    """The same ratio of times by the clock."""
    at_most: bool = False
    at_least: float | None = None
    """Lower bound of a value that is None: the other did not finish in ``ended_after_s``."""
    ended_after_s: float | None = None

    @property
    def met(self) -> bool | None:
        if self.value is not None:
            return self.value <= self.wanted if self.at_most else self.value >= self.wanted
        return True if self.at_least is not None and self.at_least >= self.wanted else None

    def as_json(self) -> dict[str, Any]:
        return asdict(self) | {"met": self.met}


def bars(points: Points, limits: dict[str, float]) -> list[Bar]:
    """Every promise whose operation was measured on this device."""
    device = points[0]["device"] if points else "cpu"
    return _gpu(points, limits) if device == "cuda" else _cpu(points)


def _cpu(points: Points) -> list[Bar]:
    found = []
    if any(p["op"] == "selective_scan" for p in points):
        step_by_step = _scan(points, 2048, "step by step", 20)
        found += [_scan(points, 2048, ANY, 3), step_by_step]
        if step_by_step.value is None:
            found += _longest_finished(points, "step by step", 20)
    for shape in dict.fromkeys(p["shape"] for p in points if p["op"] == "ssd"):
        at = _at(points, "ssd", shape, 2048)
        what = f"SSD {shape}, 2048 tokens, both passes"
        found += [_faster(what, at, ANY, 1.5), _faster(what, at, "transformers Mamba-2", 1.5)]
    if any(p["op"] == "matrix_distance" for p in points):
        at, long = (_at(points, "matrix_distance", "smollm2-135m", n) for n in (4096, 8192))
        what = "matrix distance, 4096 tokens, both passes"
        ours, ours_long, dense = _default(at), _default(long), _best(at, ANY)
        found += [
            _faster(what, at, ANY, 3),
            Bar(f"{what}, memory", _name(dense, "peers"), 20, _ratio(dense, ours, "peak_mib")),
            Bar(
                "matrix distance, memory at 8192 / at 4096 tokens",
                "",
                2.2,
                _ratio(ours_long, ours, "peak_mib"),
                at_most=True,
            ),
        ]
    return found


def _gpu(points: Points, limits: dict[str, float]) -> list[Bar]:
    found = []
    for op in ("selective_scan", "ssd", "causal_conv1d"):
        for shape in dict.fromkeys(p["shape"] for p in points if p["op"] == op):
            longest = max(p["length"] for p in points if p["op"] == op and p["shape"] == shape)
            at = _at(points, op, shape, longest)
            found.append(_faster(f"{op} {shape}, {longest} tokens, both passes", at, "mamba_ssm kernels", 1))
    for shape in dict.fromkeys(p["shape"] for p in points if p["op"] == "matrix_distance"):
        for length in sorted({p["length"] for p in points if p["op"] == "matrix_distance" and p["shape"] == shape}):
            ours = _default(_at(points, "matrix_distance", shape, length))
            value = None
            if ours is not None and _seconds(ours) is not None:
                needed = ours["forward_backward"]["work"]["flops"] / limits["matmul_flops_per_s"]
                value = round(needed / ours["forward_backward"]["seconds"], 3)
            found.append(Bar(f"matrix distance {shape}, {length} tokens", "bf16 matmul rate", 0.6, value))
    return found


def _scan(points: Points, length: int, family: str, wanted: float) -> Bar:
    at = _at(points, "selective_scan", "mamba1", length)
    return _faster(f"selective scan, {length} tokens, both passes", at, family, wanted)


def _longest_finished(points: Points, family: str, wanted: float) -> list[Bar]:
    """Beside a lower bound the exact ratio at the largest number of tokens that the other did finish."""
    lengths = {p["length"] for p in points if p["op"] == "selective_scan" and p["shape"] == "mamba1"}
    exact = (_scan(points, n, family, wanted) for n in sorted(lengths, reverse=True))
    return [b for b in exact if b.value is not None][:1]


def _faster(what: str, at: Points, family: str, wanted: float) -> Bar:
    best, ours = _best(at, family), _default(at)
    if best is None:
        return _at_least(what, at, family, wanted)
    return Bar(what, best["contender"], wanted, _ratio(best, ours, clock(best)), _ratio(best, ours, "seconds"))


def _at_least(what: str, at: Points, family: str, wanted: float) -> Bar:
    """From the member of the family that was ended first, none having finished; empty if none was ended."""
    ours = _default(at)
    ended = [p for p in _of(at, family) if "at_least" in p.get("forward_backward", {})]
    if not ended or ours is None or _seconds(ours) is None:
        return Bar(what, family or "peers", wanted, None)
    key = clock(ours)
    first = min(ended, key=lambda p: p["forward_backward"]["at_least"][key])
    passed = first["forward_backward"]["at_least"][key]
    at_least = round(passed / ours["forward_backward"][key], 1)
    return Bar(what, first["contender"], wanted, None, at_least=at_least, ended_after_s=round(passed, 1))


def _at(points: Points, op: str, shape: str, length: int) -> Points:
    return [p for p in points if (p["op"], p["shape"], p["length"]) == (op, shape, length)]


def _default(at: Points) -> dict[str, Any] | None:
    return next((p for p in at if p["default"]), None)


def _of(at: Points, family: str) -> Points:
    """The peers of a family, or of any."""
    return [p for p in at if not p["ours"] and family in (ANY, p["family"])]


def _best(at: Points, family: str) -> dict[str, Any] | None:
    """The fastest of a family whose result was right."""
    able = [p for p in _of(at, family) if _seconds(p) is not None]
    return min(able, key=lambda p: p["forward_backward"][clock(p)], default=None)


def _seconds(point: dict[str, Any]) -> float | None:
    return point.get("forward_backward", {}).get("seconds")


def _name(point: dict[str, Any] | None, family: str) -> str:
    return family if point is None else point["contender"]


def _ratio(above: dict[str, Any] | None, below: dict[str, Any] | None, key: str) -> float | None:
    """Of both passes; None unless both were measured."""
    if above is None or below is None or _seconds(above) is None or _seconds(below) is None:
        return None
    return round(above["forward_backward"][key] / below["forward_backward"][key], 2)
