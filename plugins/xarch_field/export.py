"""A field as ONNX graphs: at points, and along rays with the renderer inside.

The graph contains everything the field needs: warp, clipping, occupancy and box. It has no control flow; samples
outside the box or in empty cells have density 0. Where a profile has the operators, they are left out before the field
is evaluated; elsewhere every sample is.

Legend: N points, R rays, K samples per ray, H occupancy cells per axis.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from xarch import Profile
from xarch.kernels import FORMS, graph_forms
from xarch_field.model.field import RadianceField
from xarch_field.model.rendering import composite, ray_points, steps

NEEDS = {"grid_sample": ("GridSample",), "sine": ("Sin", "Cos"), "cumsum": ("CumSum",)}
"""Operations whose graph form (:data:`xarch.kernels.FORMS`) depends on the operators of the profile."""


def forms_of(profile: Profile) -> dict[str, str]:
    """Return for every operation the first form that ``profile`` prefers, else the first that it can run."""
    chosen = {}
    for operation, forms in FORMS.items():
        able = [form for form in forms if profile.allows(*NEEDS.get(form, ()))]
        preferred = [form for form in profile.lowerings if form in able]
        chosen[operation] = [*preferred, *able, forms[0]][0]
    return chosen


def packs(profile: Profile) -> bool:
    """Return whether graphs for ``profile`` can leave samples out: their number then depends on the rays."""
    return not profile.static and profile.allows("NonZero", "ScatterND")


class PointsGraph(nn.Module):
    """Maps (xyz [N, 3] world, dir [N, 3] unit) to (sigma [N] per world unit, rgb [N, 3]).

    Args:
        field: the field, in eval mode.
        forms: graph form per operation, see :data:`xarch.kernels.FORMS`.
    """

    def __init__(self, field: RadianceField, forms: Mapping[str, str] | None = None) -> None:
        super().__init__()
        self.field = field
        self.forms = dict(forms or {})

    def forward(self, xyz: Tensor, dir: Tensor) -> tuple[Tensor, Tensor]:
        with graph_forms(**self.forms):
            return self.field(xyz, dir)


class RaysGraph(nn.Module):
    """Maps (origins [R, 3], directions [R, 3] unit, background [3]) to (rgb [R, 3], depth [R], acc [R]).

    Args:
        field: the field, in eval mode.
        samples: steps per ray, fixed in the graph.
        forms: see :class:`PointsGraph`.
        packed: evaluate the field at samples in occupied cells alone, see :func:`packs`.
    """

    box: Tensor

    def __init__(
        self,
        field: RadianceField,
        samples: int = 96,
        forms: Mapping[str, str] | None = None,
        *,
        packed: bool = False,
    ) -> None:
        super().__init__()
        self.field = field
        self.samples = samples
        self.forms = dict(forms or {})
        self.packed = packed
        self.register_buffer("box", field.march_box(), persistent=False)

    def forward(self, origins: Tensor, directions: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        if self.packed:
            with graph_forms(**self.forms):
                points = ray_points(self.field, origins, directions, self.samples, box_23=self.box)
                values = self.field.query(points.x_N3, points.d_N3, ("sigma_raw", "rgb"))
                # All of these points are occupied.
                rgb, acc, depth = points.composite(self.field.density(values["sigma_raw"]), values["rgb"], background)
            return rgb, depth, acc
        t_RK, delta_RK = steps(origins, directions, self.box, self.samples)
        x_RK3 = origins[:, None] + t_RK[:, :, None] * directions[:, None]
        # Samples of rays that miss the box have no effect; far away they would widen the range of 8-bit quantisation.
        x_RK3 = torch.minimum(torch.maximum(x_RK3, self.box[0]), self.box[1])
        d_RK3 = directions[:, None].expand(-1, self.samples, -1)
        with graph_forms(**self.forms):
            sigma_N, rgb_N3 = self.field(x_RK3.reshape(-1, 3), d_RK3.reshape(-1, 3))
            sigma_RK, rgb_RK3 = sigma_N.view(-1, self.samples), rgb_N3.view(-1, self.samples, 3)
            rgb, acc, depth = composite(sigma_RK, rgb_RK3, delta_RK, background, t_RK)
        return rgb, depth, acc


def example_points(count: int = 7) -> tuple[Tensor, Tensor]:
    """Return points and unit directions for tracing a :class:`PointsGraph`."""
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(count, 3, generator=generator) * 2 - 1
    dirs = torch.randn(count, 3, generator=generator)
    return xyz, dirs / dirs.norm(dim=-1, keepdim=True)
