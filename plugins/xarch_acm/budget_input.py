"""Graphs that take the budget as an input, so that one file serves all budgets."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xarch import Batch, Call, ExportGraph, ParityCase, PlanError
from xarch_acm.module import Point
from xarch_acm.student import BUDGET, AcmStudent, OperatingPoint

PREPARED = "student:"
"""Beginning of what a graph reads if the student prepares it, see ``ExportGraph.reads``."""

NEAR = 1e-4
"""A budget that is less by so much is the table's: it was rounded."""


def with_budget(graph: ExportGraph, student: AcmStudent, model: nn.Module, wanted: float, mode: str) -> ExportGraph:
    """Return a graph with the budget [1] as its last input: a share of the learners' multiply-adds, from the least to
    the largest of the table; beyond them it runs as at the nearest.

    Args:
        model: that of the graph. wanted: example.

    Raises:
        PlanError: its mode has its budget built in, or a program of its family runs it, which does not know the input.
    """
    if mode not in ("dynamic", "masked"):
        raise PlanError(
            f"export.options.budget_input: a graph of mode {mode} has its budget built in: its shapes follow from it",
            "--set export.options.budget_input=false, with every_point=true for a file per budget; or mode=masked, "
            "which computes all learners",
        )
    if set(graph.inputs) - set(graph.reads):
        raise PlanError(
            f"export.options.budget_input: graph {graph.name!r} is run by programs that know only its own inputs",
            "--set export.options.budget_input=false, with every_point=true for a file per budget",
        )
    parts = {path: model.get_submodule(path) for path in student.adaptive}
    inputs = {**graph.inputs, BUDGET: torch.tensor([wanted])}
    metadata = {**graph.metadata, "inputs": {BUDGET: wanted}}
    return replace(graph, module=Budgeted(graph.module, parts, student).eval(), inputs=inputs, metadata=metadata)


class Budgeted(nn.Module):
    """A model whose last argument is the budget of its adaptive modules: their gates' shift is read off a line through
    the table, or, of fixed numbers of learners, the largest that are within it.

    Args:
        parts: path -> adaptive module of the model. student: whose table it is.
    """

    def __init__(self, module: nn.Module, parts: Mapping[str, Any], student: AcmStudent) -> None:
        super().__init__()
        self.module, self.parts, self.fixed = module, dict(parts), student.ungated
        self.shares = student.shares()
        rows = [student.fixed[share] if self.fixed else {"": student.shifts[share]} for share in self.shares]
        self.tables = {path: [float(row[path]) for row in rows] for path in rows[0]}

    def forward(self, *given: Tensor) -> Any:
        *inputs, budget = given
        found = {path: self._read(table, budget) for path, table in self.tables.items()}
        before = {path: part.point for path, part in self.parts.items()}
        try:
            for path, part in self.parts.items():
                part.point = Point(fixed=found[path]) if self.fixed else replace(part.point, shift=found[""])
            return self.module(*inputs)
        finally:
            for path, part in self.parts.items():
                part.point = before[path]

    def _read(self, table: Sequence[float], budget: Tensor) -> Tensor:
        """Return a row's value [1] at a budget: a sum of what every step of the table adds up to it."""
        value = torch.full_like(budget, table[0])
        rows = list(zip(self.shares, table, strict=True))
        for (low, first), (high, second) in pairwise(rows):
            passed = (budget >= high - NEAR).to(budget.dtype) if self.fixed else (budget - low) / (high - low)
            value = value + passed.clamp(0, 1) * (second - first)
        return value


def budget_cases(
    student: AcmStudent, graph: ExportGraph, batches: Sequence[Batch], samples: int = 2
) -> Iterator[ParityCase]:
    """Yield comparisons of a graph with a budget as input at every budget of the table, as the operating point of the
    student computes it."""
    if BUDGET not in graph.inputs or not batches:
        return
    [free] = {len(graph.inputs[name]) for name in graph.reads}
    rows = samples if any(0 in dims for dims in graph.dynamic.values()) else free
    batch = batches[0].seen_by("student").narrow(0, rows)
    prepared = {key: key.removeprefix(PREPARED) for key in graph.reads.values() if key.startswith(PREPARED)}
    with torch.no_grad():
        values = student.inner.collect(batch, set(prepared.values()))
    given = {}
    for name, key in graph.reads.items():
        value = values[prepared[key]] if key in prepared else batch[key]
        given[name] = value.to(graph.inputs[name].dtype).cpu().numpy()
    for share in student.shares():
        point = OperatingPoint(student, student.at_budget(share))
        with torch.no_grad():
            found = point.collect(batch, set(graph.gives.values()))
        expected = {output: np.asarray(found[tap].float().cpu()) for output, tap in graph.gives.items()}
        inputs = {**given, BUDGET: np.array([share], np.float32)}
        shape = {"samples": rows, "percent": round(100 * share)}
        yield ParityCase(graph.name, shape, _once(graph.name, inputs), expected, top1=graph.top1 or None)


def _once(name: str, inputs: Mapping[str, np.ndarray]) -> Any:
    def drive(call: Call) -> dict[str, np.ndarray]:
        return call(name, dict(inputs))

    return drive
