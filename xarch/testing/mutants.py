"""Mutants of a target with wrong exports, which the parity gate must reject."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph, Profile
from xarch.contracts.model import Student
from xarch.errors import ParityError

Change = Callable[[ExportGraph], ExportGraph]


class _Changed(nn.Module):
    """A graph's module with modified inputs or a modified first output."""

    def __init__(
        self, module: nn.Module, before: Callable[[Tensor], Tensor] | None, after: Callable[[Tensor], Tensor] | None
    ) -> None:
        super().__init__()
        self.module, self.before, self.after = module, before, after

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.before is not None:
            inputs = (self.before(inputs[0]), *inputs[1:])
        outputs = self.module(*inputs)
        first, *rest = (outputs,) if isinstance(outputs, Tensor) else outputs
        return (first if self.after is None else self.after(first), *rest)


def adds_one(graph: ExportGraph) -> ExportGraph:
    """Adds 1 to every element of the first output."""
    return replace(graph, module=_Changed(graph.module, None, lambda y: y + 1))


def reverses_the_last_axis(graph: ExportGraph) -> ExportGraph:
    """Reverses the first output along its last axis (classes, colours, positions)."""
    return replace(graph, module=_Changed(graph.module, None, lambda y: y.flip(-1)))


def reads_something_else(graph: ExportGraph) -> ExportGraph:
    """Replaces the first input: its values are reordered, or it is ignored."""
    name, example = next(iter(graph.inputs.items()))
    axes = [a for a, size in enumerate(example.shape) if size > 1 and a not in graph.dynamic.get(name, {})]

    def other(x: Tensor) -> Tensor:
        return x.roll(1, axes[-1]) if axes else torch.zeros_like(x)

    return replace(graph, module=_Changed(graph.module, other, None))


MUTANTS: Mapping[str, Change] = {
    change.__name__.replace("_", " "): change for change in (adds_one, reverses_the_last_axis, reads_something_else)
}
"""Name of a mutant -> the change of a graph."""


def surviving_mutants(
    adapter: TargetAdapter,
    student: Student,
    profile: Profile,
    options: Any,
    batches: Sequence[Batch],
    folder: Path,
    mutants: Mapping[str, Change] = MUTANTS,
) -> Iterator[str]:
    """Yield the mutants of a target that pass the parity gate; there must be none.

    Each mutant exports one changed graph along with the correct ones, with the target's own cases.

    Args:
        batches: held-out data on which the target passes the gate.
        folder: an empty folder for the exports.

    Yields:
        "GRAPH MUTANT", e.g. "decode_1 adds one".
    """
    from xarch.export.run import export_profile

    for i in range(len(adapter.export_graphs(student, profile, options))):
        for name, change in mutants.items():
            graphs = list(adapter.export_graphs(student, profile, options))
            graphs[i] = change(graphs[i])
            try:
                export_profile(
                    student, adapter, profile, graphs=graphs, options=options, batches=batches,
                    out=folder / f"{graphs[i].name}-{name.replace(' ', '-')}", metadata={}, say=lambda text: None,
                )  # fmt: skip
            except ParityError:
                continue
            yield f"{graphs[i].name} {name}"
