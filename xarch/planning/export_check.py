"""Checks while planning that the student will export, by translating a copy cut to about two layers.

Operators, ranks and versions depend on the architecture and not on its size, so the result holds for the student, and
an incompatible profile is detected before hours of training.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
from pydantic import BaseModel

from xarch.contracts.adapters import TargetAdapter
from xarch.contracts.export import Profile


def trial_operators(
    adapter: TargetAdapter, facts: Any, options: BaseModel, profile: Profile, export_options: BaseModel
) -> dict[str, int] | None:
    """Return how often each operator appears in the graphs of a small copy; None if the target exports no graphs.

    Raises:
        PlanError: a graph cannot be translated, or needs something the profile does not support.
    """
    import onnx
    import onnx_ir

    from xarch.export.check import operators, raise_unless_fits
    from xarch.export.onnx_export import to_onnx
    from xarch.export.origins import origins

    student = adapter.build(facts.tiny(), adapter.tiny(options), {}, device=torch.device("cpu"))
    student.module.eval().requires_grad_(False)
    total: Counter[str] = Counter()
    graphs = adapter.export_graphs(student, profile, export_options)
    if not graphs:
        return None
    for graph in graphs:
        translated = to_onnx(graph, profile)
        model = onnx.shape_inference.infer_shapes(onnx_ir.to_proto(translated))
        raise_unless_fits(model, profile, f"graph {graph.name!r}", origins(translated))
        total.update(operators(model))
    return dict(total)
