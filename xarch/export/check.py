"""Checks of an ONNX file before a runtime opens it, and the facts shown by ``xarch inspect model.onnx``."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import onnx

from xarch.contracts.export import Profile
from xarch.errors import PlanError, UsageError
from xarch.export import lowerings
from xarch.export.external_data import external_ranges, graphs_of, read_model, tensors_of
from xarch.export.integers import PLACES

STANDARD = ("", "ai.onnx")


def check_file(path: Path, profile: Profile, origins: Mapping[str, str] | None = None) -> dict[str, int]:
    """Check a file with ONNX's checker and against the limits of ``profile``.

    Args:
        origins: value -> module and source line, see :mod:`xarch.export.origins`.

    Returns:
        The count of each operator.

    Raises:
        UsageError: the file is not a valid ONNX model, or its external data leaves its folder.
        PlanError: it exceeds the profile; the message lists everything.
    """
    model = read_model(path)
    external_ranges(model, path)
    try:
        onnx.checker.check_model(os.fspath(path), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as e:
        raise UsageError(f"{path} is not a valid ONNX model: {e}") from e
    raise_unless_fits(onnx.shape_inference.infer_shapes(model), profile, path.name, origins)
    return operators(model)


def raise_unless_fits(
    model: onnx.ModelProto, profile: Profile, what: str, origins: Mapping[str, str] | None = None
) -> None:
    """Check that ``model`` (with inferred shapes) stays within the limits of ``profile``.

    Raises:
        PlanError: it does not; the message names the violations with their modules and source lines.
    """
    problems = violations(model, profile, origins)
    if not problems:
        return
    shown = "; ".join(problems[:6]) + (f"; and {len(problems) - 6} more" if len(problems) > 6 else "")
    used = {node.op_type for graph in graphs_of(model) for node in graph.node}
    own = [f"{one.name} ({one.summary})" for one in lowerings.helping({op for op in used if not profile.allows(op)})]
    rewrite = f"use a form that the lowering {', '.join(own)} rewrites" if own else "avoid these operators"
    raise PlanError(
        f"{what} does not fit the export profile {profile.name!r}: {shown}",
        f"{rewrite}, or choose another export profile; `xarch list profiles` shows them",
    )


def violations(model: onnx.ModelProto, profile: Profile, origins: Mapping[str, str] | None = None) -> list[str]:
    """List everything in ``model`` (with inferred shapes) that ``profile`` does not allow."""
    told = origins or {}

    def where(*values: str) -> str:
        origin = next((told[v] for v in values if v in told), "")
        return f" ({origin})" if origin else ""

    found = []
    opset = max((o.version for o in model.opset_import if o.domain in STANDARD), default=0)
    if opset > profile.max_opset:
        found.append(f"opset {opset}, at most {profile.max_opset}")
    if model.ir_version > profile.max_ir:
        found.append(f"IR version {model.ir_version}, at most {profile.max_ir}")
    nodes = [node for graph in graphs_of(model) for node in graph.node]
    nodes += [node for function in model.functions for node in function.node]
    for domain, op in sorted({(n.domain, n.op_type) for n in nodes}):
        first = where(*(name for n in nodes if (n.domain, n.op_type) == (domain, op) for name in n.output))
        if f"{domain}::{op}" in profile.runtime_ops:
            continue
        if domain not in STANDARD:
            found.append(f"operator {domain}::{op} is not a standard operator{first}")
        elif op in profile.forbidden_ops:
            found.append(f"operator {op} is forbidden{first}")
        elif profile.allowed_ops is not None and op not in profile.allowed_ops:
            found.append(f"operator {op} is not in the profile{first}")
    if profile.index_dtype == "int32":
        found += [f"{name} is computed in 64-bit integers{where(name)}" for name in _wide_integers(model)]
    return found + [f"{problem}{where(name)}" for name, problem in _shape_violations(model, profile)]


def _wide_integers(model: onnx.ModelProto) -> list[str]:
    """Return the values that nodes compute as 64-bit integers; constants do not count, nor do places that an operator
    can give in no other type, where all that reads them is a cast."""
    found = []
    for graph in graphs_of(model):
        computed = {name for node in graph.node if node.op_type != "Constant" for name in node.output}
        read = {name for node in graph.node if node.op_type != "Cast" for name in node.input}
        read |= {value.name for value in graph.output}
        places = {name for node in graph.node if node.op_type in PLACES for name in node.output}
        computed -= places - read
        found += [
            value.name
            for value in (*graph.value_info, *graph.output)
            if value.name in computed and value.type.tensor_type.elem_type == onnx.TensorProto.INT64
        ]
    return found


def _shape_violations(model: onnx.ModelProto, profile: Profile) -> list[tuple[str, str]]:
    """Return (value, problem with its shape)."""
    if not profile.static and profile.max_rank is None:
        return []
    found = []
    for graph in graphs_of(model):
        for value in (*graph.input, *graph.output, *graph.value_info):
            shape = value.type.tensor_type.shape
            free = [d.dim_param or "?" for d in shape.dim if not d.HasField("dim_value")]
            if profile.static and free:
                found.append((value.name, f"{value.name} has free dimensions {', '.join(free)}"))
            if profile.max_rank is not None and len(shape.dim) > profile.max_rank:
                found.append((value.name, f"{value.name} has {len(shape.dim)} dimensions, at most {profile.max_rank}"))
    return found


def operators(model: onnx.ModelProto) -> dict[str, int]:
    """Return operator -> count, most frequent first; other domains as ``domain::Op``."""
    counts = Counter(
        n.op_type if n.domain in STANDARD else f"{n.domain}::{n.op_type}" for g in graphs_of(model) for n in g.node
    )
    return dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))


def inspect_onnx(path: Path) -> dict[str, Any]:
    """Return facts about an ONNX file, read from the graph only; weights are not loaded.

    Raises:
        UsageError: the file is not an ONNX model, or its external data leaves its folder.
    """
    model = read_model(path)
    ranges = external_ranges(model, path)
    weights = {r.location: 0 for r in ranges}
    for location, _, length in {(r.location, r.offset, r.length) for r in ranges}:
        weights[location] += length
    constant = {i.name for i in model.graph.initializer}
    return {
        "path": str(path),
        "opset": {o.domain or "ai.onnx": o.version for o in model.opset_import},
        "ir": model.ir_version,
        "producer": f"{model.producer_name} {model.producer_version}".strip(),
        "inputs": {v.name: _type(v) for v in model.graph.input if v.name not in constant},
        "outputs": {v.name: _type(v) for v in model.graph.output},
        "nodes": sum(len(g.node) for g in graphs_of(model)),
        "operators": operators(model),
        "graph_bytes": path.stat().st_size,
        "inline_weight_bytes": sum(
            len(t.raw_data) or t.ByteSize() for t in tensors_of(model) if t.data_location != onnx.TensorProto.EXTERNAL
        ),
        "external_weight_bytes": weights,
        "metadata": {p.key: p.value for p in model.metadata_props},
    }


def _type(value: onnx.ValueInfoProto) -> dict[str, Any]:
    tensor = value.type.tensor_type
    kind = value.type.WhichOneof("value") or "unknown"
    if kind != "tensor_type":
        return {"type": kind.removesuffix("_type")}
    name = onnx.TensorProto.DataType.Name(tensor.elem_type).lower()
    shape = [d.dim_value if d.HasField("dim_value") else d.dim_param or "?" for d in tensor.shape.dim]
    return {"type": name, "shape": shape}
