"""Points lie where cameras see matter."""

from __future__ import annotations

from dataclasses import replace

import torch

from xarch import DataRequest
from xarch_field import RadianceField
from xarch_field.facts import FieldFacts, ViewFacts
from xarch_field.teacher import FieldTeacher
from xarch_pvd.data.provider import Views
from xarch_pvd.data.sampling import ViewOptions
from xarch_pvd.data.visible import sample_cells, visible_cells

POINTS = {"kind": "points"}


class Ball(RadianceField):
    """Solid and grey inside of a radius of 0.6 world units; empty outside."""

    has_feature = False

    def evaluate(self, u_N3, d_N3, want):  # type: ignore[no-untyped-def]
        inside = self.to_world(u_N3).norm(dim=-1) < 0.6
        raw = torch.where(inside, 6.0, -2.0)
        return {"sigma_raw": raw, "rgb": torch.full_like(u_N3, 0.5)}

    def state_blocks(self):  # type: ignore[no-untyped-def]
        return {}

    def param_groups(self):  # type: ignore[no-untyped-def]
        return {}


def ball(density: bool = True) -> FieldTeacher:
    box = ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))
    centres = (torch.arange(16) + 0.5) / 8 - 1
    radius = torch.stack(torch.meshgrid(centres, centres, centres, indexing="ij"), dim=-1).norm(dim=-1)
    field = Ball(aabb=[list(box[0]), list(box[1])], occupancy=(radius < 0.75) & density)
    facts = FieldFacts(arch="ball", aabb=box, options={}, occupancy=16, feature=False, samples=64, views=ViewFacts())
    return FieldTeacher(field, facts, ref="field:ball", fingerprint="ball")


def test_only_the_skin_is_seen() -> None:
    seen = visible_cells(ball(), ViewFacts())
    points = sample_cells(seen, 4000, torch.Generator().manual_seed(0)) * 2 - 1
    distance = points.norm(dim=-1)
    # A cell is an eighth of a unit wide.
    assert float(distance.min()) > 0.6 - 3 * 0.125
    assert 0.5 < float(distance.mean()) < 0.7
    # No camera stands below the horizon.
    assert float((points[:, 2] > 0).float().mean()) > 0.6


def test_shares_of_a_batch() -> None:
    teacher = ball()
    options = ViewOptions(visible=0.5, uniform=0.25)
    stream = Views().open(
        DataRequest(
            "teacher", options, split="train", samples=400, sample=POINTS, processors={}, seed=1, teacher=teacher
        )
    )
    xyz = next(stream)["xyz"]
    skin = (xyz.norm(dim=-1) - 0.6).abs() < 0.3
    assert len(xyz) == 400
    assert bool(skin[:200].all())
    assert not bool(skin[300:].all())
    assert float((xyz[200:300].norm(dim=-1) < 0.4).float().mean()) > 0.05, "nothing is drawn inside"


def test_nothing_to_see_is_no_error() -> None:
    teacher = ball(density=False)
    assert not bool(visible_cells(teacher, replace(ViewFacts(), width=10, height=10)).any())
    stream = Views().open(
        DataRequest(
            "teacher", ViewOptions(), split="train", samples=40, sample=POINTS, processors={}, seed=1, teacher=teacher
        )
    )
    assert next(stream)["xyz"].shape == (40, 3)
