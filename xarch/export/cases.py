"""Cases that need nothing but the graphs themselves: what a translation is checked by where no student stands behind it
(a teacher's graphs, which are measured and never shipped)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from xarch.contracts.bench import Call
from xarch.contracts.export import ExportGraph, ParityCase
from xarch.export.samples import resized


def single_graph_cases(graphs: Sequence[ExportGraph]) -> Iterator[ParityCase]:
    """Yield cases for each graph: its example inputs, and other sizes of its free dimensions.

    A free dimension is tested at its example size, at 1 and at an odd larger size, by truncating or repeating the
    example along it, so that values stay in the module's valid range.
    """
    for graph in graphs:
        symbols = {
            symbol: graph.inputs[name].shape[axis]
            for name, dims in graph.dynamic.items()
            for axis, symbol in dims.items()
        }
        yield _case(graph, {})
        if symbols:
            yield _case(graph, dict.fromkeys(symbols, 1))
            yield _case(graph, {symbol: 2 * size + 3 for symbol, size in symbols.items()})


def _case(graph: ExportGraph, sizes: Mapping[str, int]) -> ParityCase:
    inputs = {name: resized(value, graph.dynamic.get(name, {}), sizes) for name, value in graph.inputs.items()}
    inputs |= {n: torch.full_like(inputs[n], sizes[s]) for n, s in graph.counts.items() if s in sizes}
    with torch.no_grad():
        outputs = graph.module(*inputs.values())
    outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
    expected = {name: value.cpu().numpy() for name, value in zip(graph.outputs, outputs, strict=True)}
    arrays = {name: value.cpu().numpy() for name, value in inputs.items()}
    shown = {symbol: inputs[name].shape[axis] for name, dims in graph.dynamic.items() for axis, symbol in dims.items()}

    def drive(call: Call) -> dict[str, np.ndarray]:
        return call(graph.name, arrays)

    return ParityCase(graph.name, shown, drive, expected)
