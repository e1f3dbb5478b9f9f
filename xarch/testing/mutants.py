"""Mutants of a target with wrong exports, which the parity gate must reject."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import onnx_ir as ir
import torch
from torch import Tensor, nn

from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.batch import Batch
from xarch.contracts.export import ExportGraph, Profile
from xarch.contracts.model import Student
from xarch.errors import ParityError


class _Changed(nn.Module):
    """A graph's module with a modified first input or a modified first output."""

    def __init__(self, module: nn.Module, change: Change) -> None:
        super().__init__()
        self.module, self.change = module, change

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        if self.change.place == "input":
            inputs = (self.change(inputs[0]), *inputs[1:])
        outputs = self.module(*inputs)
        first, *rest = (outputs,) if isinstance(outputs, Tensor) else outputs
        return (self.change(first) if self.change.place == "output" else first, *rest)


class Change(nn.Module):
    """What a mutant does to one tensor.

    Args:
        place: "input" or "output": the first of them is changed.
        function: tensor -> tensor of the same shape and dtype.
    """

    def __init__(self, place: Literal["input", "output"], function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.place, self.function = place, function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


def adds_one(graph: ExportGraph) -> Change:
    """Adds 1 to every element of the first output."""
    return Change("output", lambda y: y + 1)


def reverses_the_last_axis(graph: ExportGraph) -> Change:
    """Reverses the first output along its last axis (classes, colours, positions)."""
    return Change("output", lambda y: y.flip(-1))


def reads_something_else(graph: ExportGraph) -> Change:
    """Replaces the first input: its values are reordered, or it is ignored."""
    name, example = next(iter(graph.inputs.items()))
    axes = [a for a, size in enumerate(example.shape) if size > 1 and a not in graph.dynamic.get(name, {})]
    return Change("input", lambda x: x.roll(1, axes[-1]) if axes else torch.zeros_like(x))


MUTANTS: Mapping[str, Callable[[ExportGraph], Change]] = {
    made.__name__.replace("_", " "): made for made in (adds_one, reverses_the_last_axis, reads_something_else)
}
"""Name of a mutant -> its change to a graph."""


def surviving_mutants(
    adapter: TargetAdapter,
    student: Student,
    profile: Profile,
    options: Any,
    batches: Sequence[Batch],
    folder: Path,
    mutants: Mapping[str, Callable[[ExportGraph], Change]] = MUTANTS,
    translate: Callable[[ExportGraph, Profile], ir.Model] | None = None,
) -> Iterator[str]:
    """Yield the mutants of a target that pass the parity gate; there must be none.

    Each mutant exports one changed graph along with the correct ones, with the target's own cases. The graphs are
    translated once.

    Args:
        batches: held-out data on which the target passes the gate.
        folder: an empty folder for the exports.
        translate: gives the models of the correct graphs; default: ``xarch.export.onnx_export.to_onnx``.

    Yields:
        "GRAPH MUTANT", e.g. "decode_1 adds one".
    """
    from xarch.export.onnx_export import to_onnx
    from xarch.export.run import export_profile

    right = list(adapter.export_graphs(student, profile, options))
    models = {graph.name: (translate or to_onnx)(graph, profile) for graph in right}
    for i, graph in enumerate(right):
        for name, mutant in mutants.items():
            change = mutant(graph)
            changed = replace(graph, module=_Changed(graph.module, change))
            wrong = {**models, graph.name: _spliced(models[graph.name], graph, change, profile)}

            def translated(given: ExportGraph, _: Profile, wrong: Mapping[str, ir.Model] = wrong) -> ir.Model:
                return wrong[given.name].clone()

            try:
                export_profile(
                    student, adapter, profile, graphs=[*right[:i], changed, *right[i + 1 :]], options=options,
                    batches=batches, out=folder / f"{graph.name}-{name.replace(' ', '-')}", metadata={},
                    say=lambda text: None, translate=translated,
                )  # fmt: skip
            except ParityError:
                continue
            yield f"{graph.name} {name}"


def _spliced(right: ir.Model, graph: ExportGraph, change: Change, profile: Profile) -> ir.Model:
    """Return a copy of a graph's model with the change in it, which is all that is translated: a second translation of
    the rest would be the same."""
    from xarch.export.onnx_export import to_onnx

    model = right.clone()
    if change.place == "input":
        value, example = model.graph.inputs[0], next(iter(graph.inputs.values()))
    else:
        outputs = graph.module(*graph.inputs.values())
        value, example = model.graph.outputs[0], outputs if isinstance(outputs, Tensor) else outputs[0]
    free = {axis: f"axis_{axis}" for axis, size in enumerate(value.shape or ()) if not isinstance(size, int)}
    part = to_onnx(ExportGraph("change", change, {"x": example}, ["y"], {"x": free}), profile).graph
    changed = part.outputs[0]
    part.outputs.clear()
    for constant in list(part.initializers.values()):
        del part.initializers[str(constant.name)]
        constant.name = f"change/{constant.name}"
        model.graph.register_initializer(constant)
    for made in (v for node in part for v in node.outputs):
        made.name = f"change/{made.name}"
    if change.place == "input":
        value.replace_all_uses_with(changed)
    else:
        changed.name, value.name = value.name, f"right/{value.name}"
        model.graph.outputs[0] = changed
    part.inputs[0].replace_all_uses_with(value)
    nodes = list(part)
    part.remove(nodes)
    if change.place == "input":
        model.graph.insert_before(model.graph[0], nodes)
    else:
        model.graph.extend(nodes)
    return model
