"""8-bit values throughout a graph, by onnxruntime's own static quantiser: convolutions, sums and pooling then run in
integers from one to the next, which is where convolutional networks gain speed on CPUs."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir

from xarch.contracts.export import ParityCase
from xarch.export.session import Sessions


def quantise_activations(
    models: dict[str, ir.Model], cases: Iterable[ParityCase], provider: str, *, threads: int
) -> tuple[dict[str, ir.Model], dict[str, int]]:
    """Return graphs whose values are quantised to the ranges that ``cases`` reach, and products with 8-bit weights in
    each; inputs and outputs stay float32."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static

    made: dict[str, ir.Model] = {}
    with tempfile.TemporaryDirectory() as text, _Quiet():
        folder = Path(text)
        for name, model in models.items():
            ir.save(model.clone(), folder / f"{name}.onnx")
        seen = _inputs(folder, cases, provider, threads)
        for name, model in models.items():
            quantize_static(
                folder / f"{name}.onnx",
                folder / f"{name}.int8.onnx",
                _Reader(seen.get(name, [])),
                quant_format=QuantFormat.QDQ,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                per_channel=True,
            )
            found = ir.load(folder / f"{name}.int8.onnx")
            # The file goes with the folder; its weights are needed afterwards.
            for value in found.graph.initializers.values():
                if value.const_value is not None:
                    value.const_value = ir.tensor(np.array(value.const_value.numpy()), name=value.name)
            found.metadata_props.update(model.metadata_props)
            made[name] = found
    return made, {name: _products(model) for name, model in made.items()}


def _inputs(
    folder: Path, cases: Iterable[ParityCase], provider: str, threads: int
) -> dict[str, list[dict[str, np.ndarray]]]:
    """Run the cases and return the inputs that each graph received."""
    sessions = Sessions(folder, provider, threads=threads, optimise=True)
    seen: dict[str, list[dict[str, np.ndarray]]] = {}

    def call(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        seen.setdefault(graph, []).append(inputs)
        return sessions(graph, inputs)

    for case in cases:
        case.drive(call)
    return seen


class _Reader:
    """The interface of onnxruntime's ``CalibrationDataReader``."""

    def __init__(self, inputs: list[dict[str, np.ndarray]]) -> None:
        self._left: Iterator[dict[str, np.ndarray]] = iter(inputs)

    def get_next(self) -> dict[str, np.ndarray] | None:
        return next(self._left, None)


class _Quiet:
    """Keeps the library's advice about preprocessing off the terminal."""

    def __enter__(self) -> None:
        self.before = logging.root.manager.disable
        logging.disable(logging.WARNING)

    def __exit__(self, *error: object) -> None:
        logging.disable(self.before)


def _products(model: ir.Model) -> int:
    kinds = ("Conv", "Gemm", "MatMul")

    def restored(value: ir.Value | None) -> bool:
        node = None if value is None else value.producer()
        return node is not None and node.op_type == "DequantizeLinear"

    return sum(n.op_type in kinds and all(map(restored, n.inputs[:2])) for n in model.graph)
