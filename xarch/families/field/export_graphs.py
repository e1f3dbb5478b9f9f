"""A field as ONNX graphs: at points, and along rays with the renderer inside.

Everything the field needs is in the graph: its warp, the clip, the occupancy, the box. There is no data-dependent
control flow; samples outside the box or in empty cells get density 0.

Legend: N points, R rays, K samples a ray, H occupancy cells an axis.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from xarch.families.field.field import RadianceField
from xarch.families.field.rendering import composite, steps
from xarch.kernels import grid_lowering


class PointsGraph(nn.Module):
    """(xyz [N, 3] world, dir [N, 3] unit) -> (sigma [N] per world unit, rgb [N, 3]).

    Args:
        field: the field, in eval mode.
        lowering: "grid_sample" keeps planes and lines as 4-D GridSample (opset 16 and later); "gather" lowers every
            interpolation to Gather and arithmetic, for runtimes without GridSample.
    """

    def __init__(self, field: RadianceField, lowering: str = "grid_sample") -> None:
        super().__init__()
        self.field = field
        self.lowering = lowering

    def forward(self, xyz: Tensor, dir: Tensor) -> tuple[Tensor, Tensor]:
        with grid_lowering(self.lowering):
            return self.field(xyz, dir)


class RaysGraph(nn.Module):
    """(origins [R, 3], directions [R, 3] unit, background [3]) -> (rgb [R, 3], depth [R], acc [R]).

    Args:
        field: the field, in eval mode.
        samples: steps a ray, fixed in the graph.
        lowering: see :class:`PointsGraph`.
    """

    box: Tensor

    def __init__(self, field: RadianceField, samples: int = 96, lowering: str = "grid_sample") -> None:
        super().__init__()
        self.field = field
        self.samples = samples
        self.lowering = lowering
        self.register_buffer("box", field.march_box(), persistent=False)

    def forward(self, origins: Tensor, directions: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        t_RK, delta_RK = steps(origins, directions, self.box, self.samples)
        x_RK3 = origins[:, None] + t_RK[:, :, None] * directions[:, None]
        d_RK3 = directions[:, None].expand(-1, self.samples, -1)
        with grid_lowering(self.lowering):
            sigma_N, rgb_N3 = self.field(x_RK3.reshape(-1, 3), d_RK3.reshape(-1, 3))
        sigma_RK, rgb_RK3 = sigma_N.view(-1, self.samples), rgb_N3.view(-1, self.samples, 3)
        rgb, acc, depth = composite(sigma_RK, rgb_RK3, delta_RK, background, t_RK)
        return rgb, depth, acc


def example_points(count: int = 7) -> tuple[Tensor, Tensor]:
    """Points and unit directions to trace a :class:`PointsGraph` with."""
    generator = torch.Generator().manual_seed(0)
    xyz = torch.rand(count, 3, generator=generator) * 2 - 1
    dirs = torch.randn(count, 3, generator=generator)
    return xyz, dirs / dirs.norm(dim=-1, keepdim=True)
