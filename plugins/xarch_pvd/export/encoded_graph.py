"""Graph ``encoded``: an MLP field without its positional encoding, for half-precision accelerators.

Angles of the encoding reach 2^(octaves - 1) radians, where half-precision numbers are a tenth or more apart. On an
accelerator without float32, the caller encodes, marches and composites; the graph holds only the layers.

Legend: N points, E width of the encoding, P pixels.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from xarch import Batch, ExportGraph, ParityCase, PlanError, Profile, Throughput
from xarch_field import ray_points
from xarch_field.model import occupancy as occupancies
from xarch_field.student import FieldStudent
from xarch_pvd.export.parity import LOOSE, POINT_TAPS, RAY_TAPS, drive_rows, picture_measures, rays_of
from xarch_pvd.targets.representations.mlp_field import MLPField


class EncodedGraph(nn.Module):
    """Maps (pe [N, E], dir [N, 3] unit) to (sigma [N] per world unit, rgb [N, 3]).

    The first three columns of ``pe`` are the point itself in [-1, 1]³, so the graph can apply the occupancy.
    """

    def __init__(self, field: MLPField) -> None:
        super().__init__()
        self.field = field

    def forward(self, pe: Tensor, dir: Tensor) -> tuple[Tensor, Tensor]:
        feature_NF = self.field.features_of(pe)
        occupied_N = occupancies.lookup(self.field.occupancy, 0.5 * (pe[:, :3] + 1))
        return self.field.density(feature_NF[:, 0], occupied_N), self.field.colour(feature_NF, dir)


def encoded_graph(
    student: FieldStudent,
    xyz: Tensor,
    dirs: Tensor,
    dynamic: dict[str, dict[int, str]],
    metadata: dict[str, Any],
    work: Throughput,
) -> ExportGraph:
    """Build the graph with example inputs at world points ``xyz``.

    Raises:
        PlanError: the field has no positional encoding.
    """
    field = _layers(student)
    told = {
        "octaves": field.frequencies,
        "encoding": "p, then for k = 0 ... octaves - 1: sin(2^k p), cos(2^k p); p = 2 (xyz - low) / (high - low) - 1",
    }
    with torch.no_grad():
        pe = field.encode(field.to_unit(xyz.to(field.aabb.device)))
    inputs = {"pe": pe, "dir": dirs}
    return ExportGraph("encoded", EncodedGraph(field), inputs, ("sigma", "rgb"), dynamic, {**metadata, **told}, work)


def encoding(u_N3: np.ndarray, octaves: int) -> np.ndarray:
    """Compute the input ``pe`` using only numpy: float32 [N, E] from points in the unit cube."""
    p_N3 = (2 * u_N3 - 1).astype(np.float32)
    waves = [wave(np.float32(2**k) * p_N3) for k in range(octaves) for wave in (np.sin, np.cos)]
    return np.concatenate([p_N3, *waves], axis=-1)


def encoded_parity(student: FieldStudent, graph: ExportGraph, batch: Batch, profile: Profile) -> Iterable[ParityCase]:
    """Yield a whole view: the caller marches, encodes and composites, the graph evaluates the field."""
    field = _layers(student)
    background = batch["background"][0]
    samples = student.facts.samples
    with torch.no_grad():
        points = ray_points(field, batch["origins"], batch["dirs"], samples)
        u_N3 = field.to_unit(points.x_N3)
    given = {"pe": encoding(u_N3.numpy(), field.frequencies), "dir": points.d_N3.numpy()}
    calls = drive_rows(graph, given)

    def drive(call: Any) -> dict[str, np.ndarray]:
        found = calls(call)
        sigma, rgb = torch.from_numpy(found["sigma"]), torch.from_numpy(found["rgb"])
        picture, acc, depth = points.composite(sigma, rgb, background)
        return {"rgb": picture.numpy(), "acc": acc.numpy(), "depth": depth.numpy()}

    loose = LOOSE.get(profile.dtype)
    yield ParityCase(
        graph.name,
        {"points": len(u_N3)},
        calls,
        rel_l2=loose,
        batch=Batch({"xyz": points.x_N3, "dirs": points.d_N3}, len(u_N3)),
        taps=POINT_TAPS,
    )
    yield ParityCase(
        graph.name,
        {"height": batch.meta["height"], "width": batch.meta["width"]},
        drive,
        measures=picture_measures(background.numpy(), profile),
        rel_l2=loose,
        batch=rays_of(batch, samples),
        taps=RAY_TAPS,
    )


def _layers(student: FieldStudent) -> MLPField:
    field = student.field
    if not isinstance(field, MLPField):
        raise PlanError(
            f"export.options.encoding is `input`, but a field of kind {field.arch!r} has no positional encoding",
            "omit the option, or convert to `mlp` first",
        )
    return field
