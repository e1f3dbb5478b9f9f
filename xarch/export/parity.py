"""The parity gate: an export is accepted only if its graphs reproduce the student in the runtime.

Expected values come from the student, not from the author of the graph: a graph fails if none of its outputs was
compared with values computed here (:mod:`xarch.export.proof`), or if one of its outputs was compared with
nothing. Every case runs with the runtime's graph optimisations on (as shipped) and off (as written), because either
can be wrong alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from xarch.contracts.export import ExportGraph, Measure, ParityCase, Profile
from xarch.errors import ParityError
from xarch.export.blocks import BLOCK_OPS
from xarch.export.figures import TIE_MARGIN, distance, top1
from xarch.export.proof import Comparison
from xarch.export.session import RuntimeFailure, Sessions, saturates


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of the parity gate.

    Attributes:
        output: maximum ``rel_l2`` of outputs.
        top1: minimum fraction of rows with the same arg-max, without ties.
    """

    output: float
    top1: float


LIMITS = {
    "float32": Limits(output=1e-4, top1=0.999),
    "float16": Limits(output=5e-3, top1=0.99),
    "int8": Limits(output=5e-2, top1=0.95),
    "int4": Limits(output=0.3, top1=0.6),
}
"""Limits by dtype of the weights."""

WEIGHTS_ONLY = Limits(output=1e-1, top1=0.9)
"""Limits of 8-bit weights in blocks: inputs are rounded by the runtime, and a vocabulary has many near ties."""


@dataclass(frozen=True, slots=True)
class Failure:
    """A limit violated by an output of a case."""

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


Blame = Callable[[str], AbstractContextManager[object]]
"""Context manager for calls into plugin code; takes a description of the call."""

PROOF = "reference"
"""Figure of a failure without a reference computed from the student."""


@dataclass
class _Proof:
    """How the outputs of one graph were compared.

    Attributes:
        taps: output -> student tap it was compared with.
        held_out: outputs compared on held-out data through the graph's declarations.
        compared: all compared outputs.
        samples: batch sizes of the calls on held-out data.
    """

    taps: dict[str, str] = field(default_factory=dict)
    held_out: set[str] = field(default_factory=set)
    compared: set[str] = field(default_factory=set)
    samples: set[int] = field(default_factory=set)

    def take(self, comparison: Comparison) -> None:
        case = comparison.case
        full = {name for name, value in case.expected.items() if value.size}
        self.compared |= full
        self.taps |= {output: tap for output, tap in comparison.taps.items() if output in full}
        if comparison.held_out:
            self.held_out |= full
            self.samples.add(case.shape["samples"])

    def described(self) -> dict[str, Any]:
        """Return the entry for ``parity.json``."""
        by = {name: "held-out batches" if name in self.held_out else "a case" for name in self.taps}
        return {
            "proof": {name: {"tap": tap, "by": by[name]} for name, tap in self.taps.items()},
            "samples": sorted(self.samples),
        }


class _Gate:
    def __init__(self, limits: Limits, graphs: Sequence[ExportGraph], blame: Blame) -> None:
        self.limits, self.blame = limits, blame
        self.failures: list[Failure] = []
        self.graphs = {graph.name: graph for graph in graphs}
        self.cases: dict[str, list[dict[str, Any]]] = {graph.name: [] for graph in graphs}
        self.rows = {graph.name: [0, 0, 0] for graph in graphs}
        self.least_top1: dict[str, float] = {}
        self.proofs = {graph.name: _Proof() for graph in graphs}

    def run(self, comparison: Comparison, sessions: Sessions) -> None:
        case = comparison.case
        before = sessions.calls[case.graph]
        try:
            with self.blame("drive"):
                seen = case.drive(sessions)
        except RuntimeFailure as e:
            self.failures.append(
                Failure(case.graph, dict(case.shape), sessions.optimise, "", "runtime", e.what, "no runtime error")
            )
            return
        finally:
            if sessions.calls[case.graph] > before:
                self.proofs[case.graph].take(comparison)
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
            limit = self.limits.output if case.rel_l2 is None else case.rel_l2
            if not figures.rel_l2 <= limit:
                fail(name, "rel_l2", figures.rel_l2, limit)
        if case.top1 in outputs:
            counts = top1(seen[case.top1], case.expected[case.top1])
            self.rows[case.graph] = [a + b for a, b in zip(self.rows[case.graph], counts, strict=True)]
            if case.least_top1 is not None:
                self.least_top1[case.graph] = min(self.least_top1.get(case.graph, 1.0), case.least_top1)
        entry: dict[str, Any] = {"shape": dict(case.shape), "optimised": optimised, "outputs": outputs}
        if case.rel_l2 is not None:
            entry["rel_l2_limit"] = case.rel_l2
        if outputs.keys() == case.expected.keys():
            measures = {}
            for measure in case.measures:
                with self.blame(f"measure {measure.name!r}"):
                    figure = float(measure.value(seen, case.expected))
                measures[measure.name] = _measured(measure, figure)
                if not measure.holds(figure):
                    fail("", measure.name, figure, _limit(measure))
            if measures:
                entry["measures"] = measures
        self.cases[case.graph].append(entry)

    def require_proof(self, notes: Mapping[str, str]) -> None:
        """Fail graphs without a comparison to values of the student, and outputs without any comparison."""
        for name, graph in self.graphs.items():
            proof = self.proofs[name]
            if not proof.taps:
                why = f"none ({notes[name]})" if name in notes else "none"
                self.failures.append(Failure(name, {}, True, "", PROOF, why, "an output compared with the student"))
                continue
            for output in graph.outputs:
                if output not in proof.compared:
                    self.failures.append(Failure(name, {}, True, output, PROOF, "none", "a reference value"))

    def result(self) -> dict[str, Any]:
        graphs: dict[str, Any] = {}
        for name, cases in self.cases.items():
            agree, rows, ties = self.rows[name]
            share = agree / rows if rows else None
            least = self.least_top1.get(name, self.limits.top1)
            if share is not None and share < least:
                self.failures.append(
                    Failure(name, {"rows": rows}, True, "arg-max", "top1_agreement", f"{share:.5f}", str(least))
                )
            graphs[name] = {
                **self.proofs[name].described(), "cases": cases, "top1_agreement": share, "rows": rows, "ties": ties
            }  # fmt: skip
            if name in self.least_top1:
                graphs[name]["least_top1"] = least
            measures = _worst(cases)
            if measures:
                graphs[name]["measures"] = measures
        return {
            "passed": not self.failures,
            "limits": {
                "rel_l2": self.limits.output,
                "top1_agreement": self.limits.top1,
                "tie_margin": TIE_MARGIN,
            },
            "graphs": graphs,
            "failures": [asdict(f) for f in self.failures],
        }


def _measured(measure: Measure, figure: float) -> dict[str, Any]:
    """Return a measure's figure with its unit and limits, for ``parity.json``."""
    limits = {"minimum": measure.minimum, "maximum": measure.maximum, "unit": measure.unit or None}
    shown = figure if np.isfinite(figure) else None
    return {"value": shown, **{k: v for k, v in limits.items() if v is not None}}


def _limit(measure: Measure) -> str:
    """Return the limits in words; a measure without limits must still be a number."""
    unit = f" {measure.unit}" if measure.unit else ""
    bounds = (("at least", measure.minimum), ("at most", measure.maximum))
    return " and ".join(f"{how} {bound:g}{unit}" for how, bound in bounds if bound is not None) or "a number"


def _worst(cases: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Return measure -> its entry in the worst case: the lowest value if it has a minimum, else the highest."""
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
    folder: Path,
    graphs: Sequence[ExportGraph],
    comparisons: Iterable[Comparison],
    profile: Profile,
    *,
    threads: int,
    notes: Mapping[str, str] | None = None,
    blame: Blame = lambda during: nullcontext(),
) -> dict[str, Any]:
    """Run ``comparisons`` on ``folder/GRAPH.onnx`` and return the contents of ``parity.json``.

    Args:
        notes: graph -> why held-out data cannot check it, filled while ``comparisons`` are drawn; without notes the
            graphs need no reference in a student (those of a teacher).
        blame: wraps calls into the case author's code.
    """
    in_blocks = (
        profile.dtype == "int8" and profile.runtime_ops >= BLOCK_OPS and all(graph.weight_only for graph in graphs)
    )
    gate = _Gate(WEIGHTS_ONLY if in_blocks else LIMITS[profile.dtype], graphs, blame)
    # Weights in blocks that are not repacked would take a hundred times longer.
    blocks = profile.runtime_ops >= BLOCK_OPS
    # Products of 8 bits as the file has them are wrong on such a processor, whatever the file.
    wrong = profile.dtype == "int8" and not in_blocks and saturates()
    runs = [
        Sessions(folder, profile.provider, threads=threads, optimise=on, prepack=on or blocks)
        for on in ([True] if wrong else [True, False])
    ]
    for comparison in comparisons:
        for sessions in runs:
            gate.run(comparison, sessions)
    if notes is not None:
        gate.require_proof(notes)
    return gate.result() | ({"unoptimised": "not compared: 8-bit sums saturate on this processor"} if wrong else {})


def raise_unless_passed(parity: dict[str, Any], where: Path) -> None:
    """Raise an error for the first failure.

    Raises:
        ParityError: names graph, case, output, the measured figure and its limit.
    """
    if parity["passed"]:
        return
    failures = [Failure(**f) for f in parity["failures"]]
    rest = f" (and {len(failures) - 1} more)" if len(failures) > 1 else ""
    if failures[0].figure == PROOF:
        raise ParityError(
            f"the export has not been compared with the student: {failures[0]}{rest}",
            "declare inputs and outputs: ExportGraph(reads={INPUT: BATCH KEY}, gives={OUTPUT: STUDENT TAP}), or add a "
            "ParityCase with `batch` and `taps`; your own expected values are checked in addition",
        )
    raise ParityError(
        f"the export does not reproduce the student: {failures[0]}{rest}",
        f"see {where / 'parity.json'} for all figures; the graphs are kept as *.onnx.rejected",
    )
