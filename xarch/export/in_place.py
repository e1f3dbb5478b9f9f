"""States that a graph writes where it read them: which they are, and calls that let it.

A state of megabytes that every token copies costs more than the arithmetic on it.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import onnxruntime as ort

from xarch.export.check import inspect_onnx
from xarch.export.session import open_session

WRITES = {("com.microsoft", "GroupQueryAttention"): {3: 1, 4: 2}}
"""Operator -> which input it may write in place -> as which output."""


def in_place(model: ir.Model) -> dict[str, str]:
    """Return output -> input of a graph that an operator writes in place, if a program gives both the same memory.

    Nothing else reads such an input: it would see what the operator wrote, or not, as the runtime orders them.
    """
    found = {}
    for node in model.graph:
        for place, result in WRITES.get((node.domain, node.op_type), {}).items():
            given = node.inputs[place] if place < len(node.inputs) else None
            if given is None or not given.is_graph_input() or len(given.uses()) > 1 or given.is_graph_output():
                continue
            made = node.outputs[result]
            if made.is_graph_output() and not made.uses():
                found[str(made.name)] = str(given.name)
    return found


class GraphCalls:
    """A ``Call`` that opens each graph of ``folder`` on first use, as its metadata wants it.

    States that a graph may write in place are written into the arrays that a call passes in, which are then also
    returned: they must be contiguous, and what they held before is gone. Their sizes stay those of the inputs.
    """

    def __init__(self, folder: Path, provider: str, *, threads: int) -> None:
        self.folder, self.provider, self.threads = folder, provider, threads
        self._open: dict[str, _Bound] = {}

    def __call__(self, graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Return the named outputs of a graph."""
        if graph not in self._open:
            self._open[graph] = _Bound(self.folder / f"{graph}.onnx", self.provider, self.threads)
        return self._open[graph](inputs)


class _Bound:
    """A session whose arguments stay bound to it from call to call, since there are hundreds."""

    def __init__(self, path: Path, provider: str, threads: int) -> None:
        told: dict[str, str] = inspect_onnx(path)["metadata"]
        prepack = told.get("xarch.prepack") != "false"
        self.session = open_session(path, provider, threads=threads, prepack=prepack)
        self.sources: dict[str, str] = json.loads(told.get("xarch.in_place", "{}"))
        self.inputs = [value.name for value in self.session.get_inputs()]
        self.outputs = [value.name for value in self.session.get_outputs()]
        self.binding: ort.IOBinding | None = self.session.io_binding() if self.sources else None
        self.held: dict[str, np.ndarray] = {}

    def __call__(self, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        if self.binding is None:
            return dict(zip(self.outputs, self.session.run(self.outputs, inputs), strict=True))
        changed = [name for name in self.inputs if self.held.get(name) is not inputs[name]]
        for name in changed:
            # bound to their memory, which therefore has to stay
            self.held[name] = np.ascontiguousarray(inputs[name])
            self.binding.bind_input(name, "cpu", 0, *_memory(self.held[name]))
        for name in self.outputs:
            source = self.sources.get(name)
            if source is None:
                self.binding.bind_output(name, "cpu")
            elif source in changed:
                self.binding.bind_output(name, "cpu", 0, *_memory(self.held[source]))
        self.session.run_with_iobinding(self.binding)
        found = zip(self.outputs, self.binding.get_outputs(), strict=True)
        return {n: self.held[self.sources[n]] if n in self.sources else value.numpy() for n, value in found}


def _memory(array: np.ndarray) -> tuple[Any, tuple[int, ...], int]:
    return array.dtype.type, array.shape, array.ctypes.data
