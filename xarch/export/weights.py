"""One weight file for all graphs of an export: equal bytes are stored once.

Large tensors leave the graphs as ONNX external data. The file is content-addressed while it is written: a tensor
whose bytes are already stored, by the same or another graph, becomes a second reference. Offsets are multiples of a
memory page, so that a runtime can map the tensors instead of copying them. A matrix whose transpose is stored is
also read from there: one graph multiplies by it as torch stores it, another by a folded copy.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path
from types import TracebackType

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import LiftConstantsToInitializersPass

INLINE_BYTES = 1024
"""Minimum size of an external tensor; smaller ones (shapes, axes, norms of tiny models) stay inside the graph."""

ALIGNMENT = 4096

MATRICES = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
"""Dtypes of matrices that may be read transposed; the scales of 8-bit matrices are bound to an axis."""


class WeightStore:
    """Streams tensors into ``path``; the file gets its name only if the block succeeds.

    Attributes:
        bytes: current size of the file.
        saved: bytes not stored again because they were already present.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.bytes = 0
        self.saved = 0
        self._partial = path.with_name(f".{path.name}.tmp-{os.getpid()}")
        self._places: dict[bytes, int] = {}

    def holds(self, tensor: np.ndarray) -> bool:
        """Whether the bytes of ``tensor`` are already stored."""
        return _digest(_view(tensor)) in self._places

    def __enter__(self) -> WeightStore:
        self._file = open(self._partial, "wb")
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        with self._file:
            if kind is None:
                self._file.flush()
                os.fsync(self._file.fileno())
        if kind is None and self._places:
            os.replace(self._partial, self.path)
        else:
            self._partial.unlink()

    def add(self, tensor: ir.TensorProtocol) -> tuple[int, int]:
        """Store the bytes of ``tensor`` and return (offset, bytes)."""
        data = _bytes(tensor)
        digest = _digest(data)
        offset = self._places.get(digest)
        if offset is None:
            offset = -(-self.bytes // ALIGNMENT) * ALIGNMENT
            self._file.write(b"\0" * (offset - self.bytes))
            self._file.write(data)
            self.bytes = offset + data.nbytes
            self._places[digest] = offset
        else:
            self.saved += data.nbytes
        return offset, data.nbytes


def _digest(data: memoryview) -> bytes:
    return hashlib.sha256(data).digest() + data.nbytes.to_bytes(8, "little")


def _view(numbers: np.ndarray) -> memoryview:
    return memoryview(np.ascontiguousarray(numbers).reshape(-1).view(np.uint8))  # type: ignore[arg-type]


def _bytes(tensor: ir.TensorProtocol) -> memoryview:
    """Return the tensor as ONNX stores it, without a copy if its memory already has that layout."""
    if tensor.dtype.bitwidth < 8 or sys.byteorder != "little":
        return memoryview(tensor.tobytes())
    return _view(tensor.numpy())


def externalise(model: ir.Model, store: WeightStore, *, transposed: bool = True) -> int:
    """Move the tensors of ``model`` into ``store``, in place; return the number of bytes its graph refers to.

    Args:
        transposed: whether a matrix may be read from a copy that another graph stores transposed.
    """
    LiftConstantsToInitializersPass(size_limit=INLINE_BYTES // 8)(model)
    if transposed:
        for graph in (model.graph, *model.graph.subgraphs()):
            _read_transposed(graph, store)
    total = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for value in graph.initializers.values():
            tensor = value.const_value
            if tensor is None or tensor.dtype == ir.DataType.STRING:
                continue
            total += tensor.nbytes
            if tensor.nbytes < INLINE_BYTES:
                continue
            offset, length = store.add(tensor)
            value.const_value = ir.ExternalTensor(
                store.path.name,
                offset,
                length,
                tensor.dtype,
                shape=ir.Shape(tensor.shape.numpy()),
                name=value.name or "",
                base_dir=store.path.parent,
            )
    return total


def _read_transposed(graph: ir.Graph, store: WeightStore) -> None:
    """Read a matrix from its stored transpose: Gemm flips its flag, other nodes read it through a Transpose."""
    for value in list(graph.initializers.values()):
        tensor = value.const_value
        if tensor is None or tensor.dtype not in MATRICES or len(tensor.shape) != 2 or tensor.nbytes < INLINE_BYTES:
            continue
        numbers = tensor.numpy()
        if value.is_graph_output() or store.holds(numbers) or not store.holds(numbers.T):
            continue
        name = f"{value.name}_transposed"
        stored = ir.Value(
            name=name,
            shape=ir.Shape(numbers.T.shape),
            type=value.type or ir.TensorType(tensor.dtype),
            const_value=ir.tensor(numbers.T, dtype=tensor.dtype, name=name),
        )
        graph.register_initializer(stored)
        others = []
        for use in list(value.uses()):
            if use.node.op_type == "Gemm" and use.node.domain == "" and use.idx == 1:
                turned = use.node.attributes.get("transB")
                use.node.attributes["transB"] = ir.AttrInt64(
                    "transB", 0 if turned is not None and turned.as_int() else 1
                )
                use.node.replace_input_with(1, stored)
            else:
                others.append(use)
        if others:
            node = ir.node("Transpose", [stored], attributes={"perm": [1, 0]})
            node.outputs[0].shape, node.outputs[0].type = value.shape, stored.type
            node.outputs[0].name = f"{value.name}_restored"
            graph.insert_before(graph[0], node)
            for use in others:
                use.node.replace_input_with(use.idx, node.outputs[0])
        del graph.initializers[str(value.name)]
