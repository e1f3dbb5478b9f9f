"""Exported fields: points one by one, a whole rendered view, and what the gate does with a graph that is wrong."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from exported_fields import export, student_of

from xarch import Batch, ExportGraph
from xarch.export.profiles import cpu
from xarch.families.field import RaysGraph
from xarch_pvd.parity import field_parity, thinned

ARCHS = ["vm", *(pytest.param(arch, marks=pytest.mark.slow) for arch in ("hash", "mlp", "cp", "tensors"))]


@pytest.mark.parametrize("arch", ARCHS)
def test_points_and_a_rendered_view_are_the_students(arch: str, tmp_path: Path) -> None:
    result = export(student_of(arch), cpu, tmp_path / "cpu")
    points, rays = result.parity["graphs"]["points"], result.parity["graphs"]["rays"]
    assert {case["shape"]["points"] for case in points["cases"]} == {1, 2, 257, 10_000}
    assert points["measures"]["largest relative error of sigma"]["value"] <= 1e-4
    assert points["measures"]["largest error of rgb"]["value"] <= 1e-5
    assert rays["measures"]["psnr"]["value"] >= rays["measures"]["psnr"]["minimum"] == 60
    assert rays["measures"]["empty pixels"]["value"] <= 1e-3
    assert all(entry["opset"] >= 18 for entry in result.profile["graphs"].values())


def test_haze_in_empty_cells_is_rejected(tmp_path: Path) -> None:
    """A graph without the occupancy renders the lowest density of the clip as haze."""
    student = student_of("vm")
    hazy = student_of("vm", resolution=24, density_rank=4, colour_rank=6)
    hazy.field.load_state_dict(student.field.state_dict())
    hazy.field.set_occupancy(torch.ones_like(student.field.occupancy))
    cases = list(field_parity(student, graphs_of(student), [view()], cpu))
    picture = cases[-1]
    module = RaysGraph(hazy.field, 32)

    def call(_: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        values = module(*(torch.from_numpy(v) for v in inputs.values()))
        return {n: v.numpy() for n, v in zip(("rgb", "depth", "acc"), values, strict=True)}

    seen = picture.drive(call)
    figures = {m.name: (m.value(seen, picture.expected), m) for m in picture.measures}
    assert not any(m.holds(value) for value, m in figures.values())
    assert figures["empty pixels"][0] > 1e-3


def test_a_view_is_thinned_to_64_pixels_and_small_ones_stay() -> None:
    pixels = torch.arange(100 * 50)
    batch = Batch({"origins": pixels[:, None].expand(-1, 3)}, len(pixels), {"height": 50, "width": 100})
    small = thinned(batch)
    assert small.meta == {"height": 32, "width": 64}
    columns = small["origins"][:, 0].view(32, 64) % 100
    assert columns[0].unique().numel() == 64
    assert thinned(small)["origins"].equal(small["origins"])


def test_an_option_nobody_knows_is_named() -> None:
    from xarch import UsageError
    from xarch_pvd.graphs import field_graphs

    with pytest.raises(UsageError, match="layers"):
        field_graphs(student_of("vm"), cpu, {"layers": 3})


def graphs_of(student: object) -> list[ExportGraph]:
    from xarch_pvd.graphs import field_graphs

    return list(field_graphs(student, cpu, {}))  # type: ignore[arg-type]


def view() -> Batch:
    from xarch_pvd.provider import picture_batch
    from xarch_pvd.views import fixed_cameras

    return picture_batch(fixed_cameras(student_of("vm").facts.views, 1, "heldout")[0], (1.0, 1.0, 1.0))
