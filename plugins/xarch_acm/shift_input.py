"""Graphs whose gates are shifted by an input, so that one file serves all budgets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from xarch import ExportGraph, PlanError


def with_shift(graph: ExportGraph, parts: Sequence[Any], shift: float, mode: str) -> ExportGraph:
    """Return a graph with the gates' shift [1] as its last input.

    Args:
        parts: its adaptive modules. shift: example.

    Raises:
        PlanError: its mode has no shift, or a program of its family runs it, which does not know the input.
    """
    if mode not in ("dynamic", "masked"):
        raise PlanError(
            f"export.options.shift_input: a graph of mode {mode} has no shift", "--set export.options.shift_input=false"
        )
    if set(graph.inputs) - set(graph.reads):
        raise PlanError(
            f"export.options.shift_input: graph {graph.name!r} is run by programs that know only its own inputs",
            "--set export.options.shift_input=false; export a file for every budget",
        )
    inputs = {**graph.inputs, "shift": torch.tensor([shift])}
    return replace(graph, module=Shifted(graph.module, parts).eval(), inputs=inputs)


class Shifted(nn.Module):
    """A model whose last argument is the shift of its adaptive modules."""

    def __init__(self, module: nn.Module, parts: Sequence[Any]) -> None:
        super().__init__()
        self.module, self.parts = module, tuple(parts)

    def forward(self, *given: Tensor) -> Any:
        *inputs, shift = given
        before = [part.point for part in self.parts]
        try:
            for part, point in zip(self.parts, before, strict=True):
                part.point = replace(point, shift=shift)
            return self.module(*inputs)
        finally:
            for part, point in zip(self.parts, before, strict=True):
                part.point = point
