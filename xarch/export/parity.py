"""The parity gate: an exported graph reproduces the student in its runtime, or it is not an export.

Every case runs with the runtime's graph optimisations on (as shipped) and off (as written), because either can be
wrong alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from xarch.contracts.export import Measure, ParityCase, Profile
from xarch.errors import ParityError
from xarch.export.figures import TIE_MARGIN, distance, top1
from xarch.export.session import RuntimeFailure, Sessions


@dataclass(frozen=True, slots=True)
class Limits:
    """Largest deviations the gate lets pass.

    Attributes:
        output: ``rel_l2`` of outputs.
        state: ``rel_l2`` of recurrent states (outputs named ``present_*``), which feed back into later calls.
        top1: smallest share of rows with the same arg-max, ties left out.
    """

    output: float
    state: float
    top1: float


LIMITS = {
    "float32": Limits(output=1e-4, state=1e-4, top1=0.999),
    "float16": Limits(output=5e-3, state=5e-3, top1=0.99),
    "int8": Limits(output=5e-2, state=5e-2, top1=0.95),
}
"""By type of the weights."""


@dataclass(frozen=True, slots=True)
class Failure:
    """One limit that one output of one case misses."""

    graph: str
    case: dict[str, int]
    optimised: bool
    output: str
    figure: str
    seen: str
    limit: str

    def __str__(self) -> str:
        how = "optimised" if self.optimised else "unoptimised"
        where = f"graph {self.graph!r}, case {self.case} ({how})" + (f", output {self.output!r}" if self.output else "")
        return f"{where}: {self.figure} is {self.seen}, limit {self.limit}"


class _Gate:
    def __init__(self, limits: Limits, graphs: Sequence[str]) -> None:
        self.limits = limits
        self.failures: list[Failure] = []
        self.cases: dict[str, list[dict[str, Any]]] = {graph: [] for graph in graphs}
        self.rows = {graph: [0, 0, 0] for graph in graphs}

    def run(self, case: ParityCase, sessions: Sessions) -> None:
        try:
            seen = case.drive(sessions)
        except RuntimeFailure as e:
            self.failures.append(
                Failure(case.graph, dict(case.shape), sessions.optimise, "", "runtime", str(e), "runs without error")
            )
            return
        self.compare(case, seen, sessions.optimise)

    def compare(self, case: ParityCase, seen: dict[str, np.ndarray], optimised: bool) -> None:
        outputs: dict[str, dict[str, float]] = {}

        def fail(output: str, figure: str, value: object, limit: object) -> None:
            shown = f"{value:.3g}" if isinstance(value, float) else str(value)
            self.failures.append(Failure(case.graph, dict(case.shape), optimised, output, figure, shown, str(limit)))

        for name, wanted in case.expected.items():
            got = seen.get(name)
            if got is None:
                fail(name, "presence", "missing", "present")
                continue
            if got.shape != wanted.shape:
                fail(name, "shape", list(got.shape), list(wanted.shape))
                continue
            broken = [int(np.size(a) - np.isfinite(a).sum()) for a in (got, wanted)]
            if any(broken):
                where = "the export" if broken[0] else "the student itself"
                fail(name, f"NaN or infinity in {where}", max(broken), 0)
                continue
            figures = distance(got, wanted)
            outputs[name] = asdict(figures)
            limit = self.limits.state if name.startswith("present_") else self.limits.output
            limit = limit if case.rel_l2 is None else case.rel_l2
            if not figures.rel_l2 <= limit:
                fail(name, "rel_l2", figures.rel_l2, limit)
        if case.top1 in outputs:
            counts = top1(seen[case.top1], case.expected[case.top1])
            self.rows[case.graph] = [a + b for a, b in zip(self.rows[case.graph], counts, strict=True)]
        entry: dict[str, Any] = {"shape": dict(case.shape), "optimised": optimised, "outputs": outputs}
        if case.rel_l2 is not None:
            entry["rel_l2_limit"] = case.rel_l2
        if outputs.keys() == case.expected.keys():
            measures = {}
            for measure in case.measures:
                figure = float(measure.value(seen, case.expected))
                measures[measure.name] = _measured(measure, figure)
                if not measure.holds(figure):
                    fail("", measure.name, figure, _limit(measure))
            if measures:
                entry["measures"] = measures
        self.cases[case.graph].append(entry)

    def result(self) -> dict[str, Any]:
        graphs: dict[str, Any] = {}
        for name, cases in self.cases.items():
            agree, rows, ties = self.rows[name]
            share = agree / rows if rows else None
            if share is not None and share < self.limits.top1:
                limit = str(self.limits.top1)
                self.failures.append(
                    Failure(name, {"rows": rows}, True, "arg-max", "top1_agreement", f"{share:.5f}", limit)
                )
            graphs[name] = {"cases": cases, "top1_agreement": share, "rows": rows, "ties": ties}
            measures = _worst(cases)
            if measures:
                graphs[name]["measures"] = measures
        return {
            "passed": not self.failures,
            "limits": {
                "rel_l2": self.limits.output,
                "state_rel_l2": self.limits.state,
                "top1_agreement": self.limits.top1,
                "tie_margin": TIE_MARGIN,
            },
            "graphs": graphs,
            "failures": [asdict(f) for f in self.failures],
        }


def _measured(measure: Measure, figure: float) -> dict[str, Any]:
    """A measure's figure with its unit and limits, as ``parity.json`` holds it."""
    limits = {"minimum": measure.minimum, "maximum": measure.maximum, "unit": measure.unit or None}
    shown = figure if np.isfinite(figure) else None
    return {"value": shown, **{k: v for k, v in limits.items() if v is not None}}


def _limit(measure: Measure) -> str:
    """The limits in words; a measure without any still has to be a number."""
    unit = f" {measure.unit}" if measure.unit else ""
    bounds = (("at least", measure.minimum), ("at most", measure.maximum))
    return " and ".join(f"{how} {bound:g}{unit}" for how, bound in bounds if bound is not None) or "a number"


def _worst(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Measure -> its entry in the case where it is worst: lowest where a minimum is asked for, else highest."""
    worst: dict[str, Any] = {}
    for case in cases:
        for name, entry in case.get("measures", {}).items():
            worst[name] = max(worst.get(name, entry), entry, key=_badness)
    return worst


def _badness(entry: dict[str, Any]) -> float:
    if entry["value"] is None:
        return float("inf")
    return float(-entry["value"] if "minimum" in entry else entry["value"])


def measure_parity(
    folder: Path, graphs: Sequence[str], cases: Iterable[ParityCase], profile: Profile, *, threads: int
) -> dict[str, Any]:
    """Run ``cases`` on ``folder/GRAPH.onnx`` and return what ``parity.json`` holds.

    A graph that no case drives fails the gate: it would ship unproven.
    """
    limits = LIMITS[profile.dtype]
    gate = _Gate(limits, graphs)
    runs = [Sessions(folder, profile.provider, threads=threads, optimise=on) for on in (True, False)]
    for case in cases:
        if case.graph not in gate.cases:
            raise ValueError(f"a parity case is credited to {case.graph!r}, the graphs are {list(graphs)}")
        for sessions in runs:
            gate.run(case, sessions)
    for name in graphs:
        if any(name not in sessions.used for sessions in runs):
            gate.failures.append(Failure(name, {}, True, "", "cases", "0", "at least 1"))
    return gate.result()


def raise_unless_passed(parity: dict[str, Any], where: Path) -> None:
    """End with the first failure in words.

    Raises:
        ParityError: naming graph, case, output, the figure seen and its limit.
    """
    if parity["passed"]:
        return
    failures = [Failure(**f) for f in parity["failures"]]
    rest = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    raise ParityError(
        f"the export does not reproduce the student: {failures[0]}{rest}",
        f"all figures are in {where / 'parity.json'}; the graphs were kept as *.onnx.rejected",
    )
