"""Teachers with their own feature: a linear map stitches it to the shared width.

Progressive volume distillation (arXiv 2211.15977) aligns 16-value features that a common colour head reads. A teacher
of another project has a feature of another width and another head. A map A: R^D -> R^15 and a colour head are fitted
jointly so that the head reproduces the teacher's colours from A's values. This anchors A, which on its own could shrink
to zero with the student. Students inherit the head, the volume stage matches (log-density, A feature), and A is
discarded with the teacher.

Legend: N points, M directions, D width of the teacher's feature.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from xarch_field import FEATURES, ColourHead, RadianceField, named_tensors
from xarch_field.model import occupancy as occupancies
from xarch_field.teacher import FieldTeacher
from xarch_pvd.editing.fields import EditedField
from xarch_pvd.source.latent import LatentField

POINTS, DIRECTIONS = 1 << 15, 2
STEPS, BATCH = 200, 2048
HEAD_LR, MAP_LR = 2e-2, 6e-3
FLOOR = 0.02
"""Added to a point's opacity to form its weight."""
OPAQUE = 7.0
"""Highest log-density in the feature; the lowest is the teacher's value for empty space."""


class Stitch(nn.Module):
    """Linear map A, whose values are the features that ``head`` reads."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.map = nn.Linear(width, FEATURES - 1)
        self.head = ColourHead()


class StitchedTeacher(FieldTeacher):
    """Teacher whose own feature is stitched to the shared one; the stitch is fitted on first use."""

    @property
    def has_feature(self) -> bool:
        return True

    @cached_property
    def stitch(self) -> Stitch:
        """Return the fitted map and head, always the same."""
        return fit_stitch(self)

    def query(self, x_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        if "feature" not in want:
            return super().query(x_N3, d_N3, want)
        values = super().query(x_N3, d_N3, {*want, "sigma_raw"} - {"feature"})
        raw_N1 = values["sigma_raw"].clamp(self.facts.empty, OPAQUE)[:, None]
        values["feature"] = torch.cat((raw_N1, self.stitch.map(latent(self.field, x_N3))), dim=-1)
        return {name: values[name] for name in want}

    def blocks(self, wanted: Collection[str]) -> Mapping[str, Mapping[str, Tensor]]:
        found = super().blocks(wanted)
        return {**found, "color_net": named_tensors(self.stitch.head)} if "color_net" in wanted else found


def has_latent(field: RadianceField) -> bool:
    """Return whether a field, edited or not, has its own feature to stitch; a composed field has none."""
    if isinstance(field, EditedField):
        return len(field.below) == 1 and has_latent(field.first)
    return isinstance(field, LatentField)


def latent(field: RadianceField, x_N3: Tensor) -> Tensor:
    """Return a field's own feature [N, D] at world points."""
    if isinstance(field, EditedField):
        return latent(field.first, field.before(x_N3))
    assert isinstance(field, LatentField)
    return field.latent(field.to_unit(x_N3))


def fit_stitch(teacher: FieldTeacher) -> Stitch:
    """Fit map and head for a teacher: half a second of Adam on points of its occupied cells.

    The map is initialised with the principal axes of the feature. The fit runs on the CPU with its own generators: the
    same teacher always yields the same stitch, and global RNG state does not change.
    """
    generator = torch.Generator().manual_seed(0)
    latent_ND, weight_N, dirs_MN3, rgb_MN3 = _samples(teacher, generator)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(0)
        stitch = Stitch(latent_ND.shape[1])
        _principal_axes(stitch.map, latent_ND, weight_N)
        groups = [
            {"params": list(m.parameters()), "peak": lr} for m, lr in ((stitch.map, MAP_LR), (stitch.head, HEAD_LR))
        ]
        optimiser = torch.optim.Adam(groups, lr=HEAD_LR, betas=(0.9, 0.99))
        for step in range(STEPS):
            scale = 0.03 + 0.97 * 0.5 * (1 + math.cos(math.pi * step / STEPS))
            for group in optimiser.param_groups:
                group["lr"] = scale * group["peak"]
            rows = torch.randint(rgb_MN3.shape[0] * POINTS, (BATCH,), generator=generator)
            look, place = rows // POINTS, rows % POINTS
            rgb = stitch.head.colour(stitch.map(latent_ND[place]), dirs_MN3[look, place])
            loss = (weight_N[place, None] * (rgb - rgb_MN3[look, place]).square()).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return stitch.eval().requires_grad_(False).to(teacher.field.aabb.device)


@torch.no_grad()
def _samples(teacher: FieldTeacher, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return features, weights, directions and colours at points of the occupied cells, on the CPU."""
    field = teacher.field
    device = field.aabb.device
    u_N3 = occupancies.sample(field.occupancy, POINTS, generator, uniform=0.0)
    x_N3 = field.to_world(u_N3.to(device))
    opacity_N = 1 - torch.exp(-field.density(field.sigma_raw(x_N3)) * teacher.step)
    dirs_MN3 = F.normalize(torch.randn(DIRECTIONS, POINTS, 3, generator=generator), dim=-1)
    rgb_MN3 = torch.stack([field.query(x_N3, d.to(device), ("rgb",))["rgb"] for d in dirs_MN3])
    return latent(field, x_N3).cpu(), opacity_N.cpu() + FLOOR, dirs_MN3, rgb_MN3.cpu()


@torch.no_grad()
def _principal_axes(layer: nn.Linear, latent_ND: Tensor, weight_N: Tensor) -> None:
    """Set rows to the axes of largest variance, with decreasing but nonzero scale; other rows stay zero."""
    mean_D = (weight_N[:, None] * latent_ND).sum(dim=0) / weight_N.sum()
    centred_ND = latent_ND - mean_D
    covariance = (centred_ND * weight_N[:, None]).T @ centred_ND / weight_N.sum()
    size, axes = torch.linalg.eigh(covariance)
    size, axes = size.flip(0)[: FEATURES - 1].clamp_min(0), axes.flip(1)[:, : FEATURES - 1]
    largest = size[0].clamp_min(1e-12)
    scale = (size / largest).pow(0.25) / size.clamp_min(1e-6 * largest).sqrt()
    layer.weight.zero_()
    layer.weight[: len(size)] = (axes * scale).T
    layer.bias.copy_(-(layer.weight @ mean_D))
