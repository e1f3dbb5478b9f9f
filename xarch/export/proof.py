"""Reference values computed by the student on held-out data, independent of the author of an export.

Every graph that declares its inputs and outputs is compared with the student's taps on batches of several sizes, cut
and joined from held-out data. Cases of an author that name taps also get their expected values here.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xarch.contracts.batch import Batch
from xarch.contracts.bench import Call
from xarch.contracts.export import ExportGraph, ParityCase
from xarch.contracts.model import Student, TapModel
from xarch.errors import PlanError
from xarch.export.samples import Cut, cuts, group, prepared_by


@dataclass(frozen=True)
class Comparison:
    """A case whose expected values are known.

    Attributes:
        case: with ``expected`` filled in.
        taps: output -> student tap, for values computed here.
        held_out: whether the case uses the graph's declared inputs and outputs on held-out data.
    """

    case: ParityCase
    taps: Mapping[str, str]
    held_out: bool = False


class Prover:
    """Computes expected values from the student and its variants.

    Args:
        student: in eval mode.
        graphs: the exported graphs.
        batches: held-out data, with the views of both sides.

    Attributes:
        notes: graph -> why held-out data cannot check it, for its error message.
    """

    def __init__(self, student: TapModel, graphs: Sequence[ExportGraph], batches: Iterable[Batch]) -> None:
        self.graphs = {graph.name: graph for graph in graphs}
        self.batches = [batch.seen_by("student") for batch in batches]
        self.notes: dict[str, str] = {}
        self._last: tuple[Batch, Hashable, dict[str, np.ndarray]] | None = None
        varied = any(graph.variant for graph in graphs)
        variants = student.variants() if varied and isinstance(student, Student) else {}
        self.models: dict[str, TapModel] = {"": student, **variants}
        for graph in graphs:
            if graph.variant not in self.models:
                raise PlanError(
                    f"graph {graph.name!r} belongs to the variant {graph.variant!r}; the student's variants are "
                    f"{', '.join(variants) or 'none'}"
                )

    def held_out(self, graph: ExportGraph) -> Iterator[Comparison]:
        """Yield comparisons of the graph on held-out batches, if it declares its inputs and outputs.

        Raises:
            PlanError: a declared input, output, tap or shape does not exist or does not fit.
        """
        for cut in self.inputs(graph):
            case = ParityCase(graph.name, cut.shape, _once(graph, cut.inputs), top1=graph.top1 or None)
            expected = self._values(graph, cut.batch, graph.gives)
            yield Comparison(replace(case, expected=expected), dict(graph.gives), held_out=True)

    def inputs(self, graph: ExportGraph) -> Iterator[Cut]:
        """Yield held-out inputs of a graph, without expected values."""
        if not self._declared(graph):
            return
        prepared = {key: tap for key in graph.reads.values() if (tap := prepared_by(key)) is not None}
        keys = set(graph.reads.values()) - set(prepared)
        absent = sorted(keys - set(self.batches[0].tensors)) if self.batches else []
        if not self.batches or absent:
            self.notes[graph.name] = f"held-out batches have no {', '.join(absent)}" if absent else "no held-out data"
            return
        if prepared:
            samples = group([self._with_prepared(graph, batch, prepared) for batch in self.batches])
        else:
            samples = group([Batch({k: b[k] for k in sorted(keys)}, len(b), b.meta) for b in self.batches])
        try:
            yield from cuts(graph, samples)
        except ValueError as e:
            self.notes[graph.name] = str(e)

    def _with_prepared(self, graph: ExportGraph, batch: Batch, prepared: Mapping[str, str]) -> Batch:
        """Return the batch with the inputs that a caller of the graph prepares."""
        values = self._collected(graph, batch, set(prepared.values()))
        return Batch({**batch.tensors, **{key: values[tap] for key, tap in prepared.items()}}, len(batch), batch.meta)

    def drives(self) -> Iterator[ParityCase]:
        """Yield cases without expected values that run every declared graph, for calibration."""
        for graph in self.graphs.values():
            for cut in self.inputs(graph):
                yield ParityCase(graph.name, cut.shape, _once(graph, cut.inputs))

    def complete(self, case: ParityCase) -> Comparison:
        """Return an author's case with the values of its taps.

        Raises:
            PlanError: it names no graph of the export, taps without a batch, or an output twice.
        """
        graph = self.graphs.get(case.graph)
        if graph is None:
            raise PlanError(f"a parity case names the graph {case.graph!r}; the graphs are {list(self.graphs)}")
        if not case.taps:
            return Comparison(case, {})
        twice = sorted(set(case.taps) & set(case.expected))
        if case.batch is None or twice:
            why = f"lists {twice} both as taps and as expected values" if twice else "names taps but has no batch"
            raise PlanError(f"a parity case of graph {case.graph!r} {why}")
        values = self._of_author(graph, case.batch, case.taps)
        for name, (axis, indices) in case.positions.items():
            values[name] = values[name].take(list(indices), axis)
        return Comparison(replace(case, expected={**case.expected, **values}), dict(case.taps))

    def _of_author(self, graph: ExportGraph, batch: Batch, taps: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Return the values of an author's batch; cases one after another that share it share them."""
        key = (graph.variant, tuple(taps.items()))
        if self._last is None or self._last[0] is not batch or self._last[1] != key:
            self._last = None
            self._last = batch, key, self._values(graph, batch.seen_by("student"), taps)
        return dict(self._last[2])

    def _declared(self, graph: ExportGraph) -> bool:
        if not graph.reads or not graph.gives:
            return False
        for word, named, known in (
            ("reads", graph.reads, list(graph.inputs)),
            ("gives", graph.gives, list(graph.outputs)),
        ):
            unknown = sorted(set(named) - set(known))
            if unknown:
                raise PlanError(f"graph {graph.name!r} {word} {unknown}, which is not among {known}")
        return True

    def _values(self, graph: ExportGraph, batch: Batch, taps: Mapping[str, str]) -> dict[str, np.ndarray]:
        """Return output -> the value the student computes for it."""
        found = self._collected(graph, batch, set(taps.values()))
        return {output: dense(found[tap], tap) for output, tap in taps.items()}

    def _collected(self, graph: ExportGraph, batch: Batch, wanted: set[str]) -> dict[str, Any]:
        """Return the values of the student's taps."""
        model = self.models[graph.variant]
        known = model.taps()
        unknown = sorted(wanted - set(known))
        if unknown:
            raise PlanError(
                f"graph {graph.name!r} declares {unknown[0]!r}, which is not a tap of the student",
                f"its taps: {', '.join(list(known)[-12:])}",
            )
        model.module.eval()
        try:
            with torch.no_grad():
                return model.collect(batch.to(_device(model)), wanted)
        except KeyError as e:
            key = e.args[0] if e.args else ""
            if key in batch.tensors or not any(key in b.tensors for b in self.batches):
                raise
            raise PlanError(
                f"graph {graph.name!r} reads {', '.join(sorted(batch.tensors))}, but the student also reads {key!r}",
                "add it to the graph's `reads`, or add a ParityCase with `batch` and `taps`",
            ) from e


def dense(value: Any, tap: str) -> np.ndarray:
    """Return a tap's value as an array.

    Raises:
        PlanError: it is structured and has no dense form.
    """
    if not isinstance(value, Tensor):
        if not hasattr(value, "full"):
            raise PlanError(f"the tap {tap!r} is a {type(value).__name__} without full(), so no output can be compared")
        value = value.full()
    value = value.detach().cpu()
    return np.asarray((value.float() if value.dtype == torch.bfloat16 else value).numpy())


def _once(graph: ExportGraph, inputs: dict[str, np.ndarray]) -> Any:
    def drive(call: Call) -> dict[str, np.ndarray]:
        return call(graph.name, inputs)

    return drive


def _device(model: TapModel) -> torch.device:
    tensors = (*model.module.parameters(), *model.module.buffers())
    return tensors[0].device if tensors else torch.device("cpu")
