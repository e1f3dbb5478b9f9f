"""Calibration data for 8-bit quantisation: points in occupied cells.

Values elsewhere are masked and never visible, but may be arbitrary and would widen the quantisation ranges.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from xarch import ExportGraph, ParityCase
from xarch_field.model import occupancy as occupancies
from xarch_field.student import FieldStudent
from xarch_pvd.export.encoded_graph import encoding
from xarch_pvd.export.parity import drive_rows
from xarch_pvd.targets.representations.mlp_field import MLPField

POINTS = 16_384


def occupied_points(student: FieldStudent, graph: ExportGraph) -> Iterable[ParityCase]:
    """Yield one case of ``points`` or ``encoded``; ``rays`` has the same weights."""
    generator = torch.Generator().manual_seed(6)
    field = student.field
    u_N3 = occupancies.sample(field.occupancy.cpu(), POINTS, generator, uniform=0.0)
    dirs_N3 = torch.nn.functional.normalize(torch.randn(POINTS, 3, generator=generator), dim=-1)
    given = {"dir": dirs_N3.numpy()}
    if "pe" in graph.inputs and isinstance(field, MLPField):
        given["pe"] = encoding(u_N3.numpy(), field.frequencies)
    else:
        given["xyz"] = field.to_world(u_N3).numpy()
    yield ParityCase(graph.name, {"points": POINTS}, drive_rows(graph, given), {})
