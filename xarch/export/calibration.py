"""Calibration of 8-bit exports: ranges of the inputs of matrix products, measured on real data."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import onnx_ir as ir

from xarch.contracts.export import ParityCase
from xarch.errors import DivergedError, PlanError
from xarch.export.quantise import Range, products
from xarch.export.session import Sessions
from xarch.export.weights import WeightStore, externalise


def calibrate(
    models: Mapping[str, ir.Model], cases: Iterable[ParityCase], folder: Path, provider: str, *, threads: int
) -> dict[str, Range]:
    """Run float32 graphs on ``cases`` and record the range of the inputs of their products.

    A weight shared by several graphs gets one range, so that its quantised form is the same in all of them.

    Args:
        models: the graphs by name; unchanged afterwards.
        folder: an empty folder for temporary files.

    Returns:
        Name of a weight -> (minimum, maximum) of the values it is multiplied with.

    Raises:
        PlanError: no case reaches a product.
        DivergedError: an input of a product is not finite.
    """
    watched: dict[str, dict[str, str]] = {}
    with WeightStore(folder / "weights.data") as store:
        for name, model in models.items():
            watched[name] = _watch(model, folder / f"{name}.onnx", store)
    sessions = Sessions(folder, provider, threads=threads, optimise=True)
    ranges: dict[str, Range] = {}

    def call(graph: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        outputs = sessions(graph, inputs)
        for weight, name in watched[graph].items():
            numbers = inputs[name] if name in inputs else outputs[name]
            if not np.isfinite(numbers).all():
                raise DivergedError(
                    f"calibration of graph {graph!r}: first non-finite: {name}, the input of weight {weight}",
                    "the student gives NaN or infinity on this data; check its figures in eval.json",
                )
            low, high = ranges.get(weight, (math.inf, -math.inf))
            ranges[weight] = min(low, float(numbers.min())), max(high, float(numbers.max()))
        return outputs

    for case in cases:
        case.drive(call)
    for graph, weights in watched.items():
        missing = [w for w in weights if not all(map(math.isfinite, ranges.get(w, (math.nan,))))]
        if missing:
            raise PlanError(
                f"graph {graph!r} cannot be quantised: calibration found no inputs for {missing[0]}",
                "add held-out data with --set export.parity_samples=N, or export to a float target",
            )
    return ranges


def _watch(model: ir.Model, path: Path, store: WeightStore) -> dict[str, str]:
    """Save a copy of ``model`` that also outputs the inputs of its products; return weight -> name of that output."""
    copy = model.clone()
    values = {node.inputs[1].name: node.inputs[0] for node in products(copy) if node.inputs[1] is not None}
    inputs = {str(weight): value for weight, value in values.items() if value is not None}
    known = {value.name for value in (*copy.graph.inputs, *copy.graph.outputs)}
    copy.graph.outputs.extend({v.name: v for v in inputs.values() if v.name not in known}.values())
    externalise(copy, store)
    ir.save(copy, path)
    return {weight: str(value.name) for weight, value in inputs.items()}
