"""Volume rendering by quadrature: where rays are sampled, how samples become colour, opacity and depth.

T_i = exp(−Σ_{j<i} σ_j δ_j), w_i = T_i − T_{i+1}, colour Σ w c + (1 − Σ w) background, depth Σ w t (NeRF, arXiv
2003.08934, section 4). Uses prefix sums of optical depth instead of products of transparency: stable and exportable.

Legend: R rays, K samples per ray, N samples in occupied cells, 3 = x, y, z (or r, g, b).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from xarch.kernels import prefix_sum
from xarch_field.model import occupancy as occupancies
from xarch_field.model.warp import to_unit

if TYPE_CHECKING:
    from xarch_field.model.field import RadianceField


def composite(
    sigma_RK: Tensor, rgb_RK3: Tensor, delta_RK: Tensor, background_R3: Tensor, depth: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Composite samples into colour [R, 3], opacity [R] and expected depth [R]; float32 even under autocast.

    Args:
        sigma_RK: density per world unit, zero in empty space.
        rgb_RK3: colours.
        delta_RK: lengths of the samples.
        background_R3: colour behind each ray (or one colour for all, [3]).
        depth: distances t [R, K] of the samples.
    """
    weight_RK, acc_R = ray_weights(sigma_RK.float() * delta_RK.float())
    rgb_R3 = (weight_RK[:, :, None] * rgb_RK3.float()).sum(dim=1) + (1 - acc_R)[:, None] * background_R3
    return rgb_R3, acc_R, (weight_RK * depth).sum(dim=-1)


def ray_weights(tau_RK: Tensor) -> tuple[Tensor, Tensor]:
    """Return sample weights in the ray's colour [R, K] and opacity [R] from optical depths."""
    after_RK = torch.exp(-prefix_sum(tau_RK))
    before_RK = torch.cat((torch.ones_like(after_RK[:, :1]), after_RK[:, :-1]), dim=-1)
    return before_RK - after_RK, 1 - after_RK[:, -1]


def slabs(origins_R3: Tensor, dirs_R3: Tensor, box_23: Tensor) -> tuple[Tensor, Tensor]:
    """Return distances at which rays enter and leave a box, both [R]; equal where a ray misses it."""
    tiny = torch.full_like(dirs_R3, 1e-9)
    inverse = 1 / torch.where(dirs_R3.abs() < 1e-9, tiny, dirs_R3)
    first, second = (box_23[0] - origins_R3) * inverse, (box_23[1] - origins_R3) * inverse
    near_R = torch.minimum(first, second).amax(dim=-1).clamp_min(0.0)
    far_R = torch.maximum(first, second).amin(dim=-1)
    return near_R, torch.maximum(far_R, near_R)


def march(
    origins: Tensor, dirs: Tensor, aabb: Tensor, occupancy: Tensor | None, samples: int, jitter_R: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample K equal steps between the points where each ray enters and leaves a box.

    Args:
        origins, dirs: rays [R, 3] with unit directions, in world units.
        aabb: the box, [2, 3].
        occupancy: bool [H, H, H] over this box, or None if all of it is occupied.
        samples: steps per ray.
        jitter_R: position of the samples within their step, in [0, 1); None uses the middle.

    Returns:
        t [R, K], delta [R, K] and mask bool [R, K] (in the box and in an occupied cell).
    """
    t_RK, delta_RK = steps(origins, dirs, aabb, samples, jitter_R)
    mask_RK = delta_RK > 0
    if occupancy is not None:
        x_N3 = (origins[:, None] + t_RK[:, :, None] * dirs[:, None]).reshape(-1, 3)
        mask_RK = mask_RK & occupancies.lookup(occupancy, to_unit(x_N3, aabb)).view(mask_RK.shape)
    return t_RK, delta_RK, mask_RK


def steps(
    origins: Tensor, dirs: Tensor, box_23: Tensor, samples: int, jitter_R: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return sample distances t and step lengths delta, both [R, K]; see :func:`march`."""
    near_R, far_R = slabs(origins, dirs, box_23)
    place_RK = torch.arange(samples, device=origins.device, dtype=origins.dtype)[None]
    place_RK = place_RK + (0.5 if jitter_R is None else jitter_R[:, None])
    delta_R = (far_R - near_R) / samples
    return near_R[:, None] + place_RK * delta_R[:, None], delta_R[:, None].expand(-1, samples)


@dataclass(frozen=True, slots=True)
class RayPoints:
    """The samples of a batch of rays that lie in occupied cells, packed.

    Attributes:
        x_N3, d_N3: world points and their directions.
        slot_N: index of each in the flat [R * K] samples.
        t_RK, delta_RK: distances and lengths of all samples.
    """

    x_N3: Tensor
    d_N3: Tensor
    slot_N: Tensor
    t_RK: Tensor
    delta_RK: Tensor

    def composite(self, sigma_N: Tensor, rgb_N3: Tensor, background: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return colour [R, 3], opacity [R], depth [R] from values at the packed points; other samples are empty."""
        return composite(self.unpack(sigma_N), self.unpack(rgb_N3), self.delta_RK, background, self.t_RK)

    def unpack(self, values: Tensor) -> Tensor:
        """Scatter [N, ...] to [R, K, ...], zero at samples outside occupied cells."""
        rays, samples = self.t_RK.shape
        flat = values.new_zeros((rays * samples, *values.shape[1:])).index_copy(0, self.slot_N, values)
        return flat.view(rays, samples, *values.shape[1:])


def ray_points(
    field: RadianceField,
    origins: Tensor,
    dirs: Tensor,
    samples: int,
    jitter_R: Tensor | None = None,
    box_23: Tensor | None = None,
) -> RayPoints:
    """Return the points to query in order to render rays; see :func:`march` for the arguments.

    Args:
        box_23: the field's ``march_box()``, if it is known.
    """
    t_RK, delta_RK = steps(origins, dirs, field.march_box() if box_23 is None else box_23, samples, jitter_R)
    x_RK3 = origins[:, None] + t_RK[:, :, None] * dirs[:, None]
    mask_N = field.occupied(x_RK3.view(-1, 3)) & (delta_RK > 0).reshape(-1)
    slot_N = mask_N.nonzero()[:, 0]
    return RayPoints(x_RK3.view(-1, 3)[slot_N], dirs[slot_N // samples], slot_N, t_RK, delta_RK)


def render(
    field: RadianceField,
    origins: Tensor,
    dirs: Tensor,
    background: Tensor | None = None,
    *,
    samples: int = 128,
    chunk: int = 4096,
    jitter_R: Tensor | None = None,
) -> dict[str, Tensor]:
    """Render rays; differentiable if gradients are enabled.

    Args:
        field: the field, queried only where it is occupied.
        origins, dirs: rays [R, 3] with unit directions.
        background: [R, 3] or [3]; None uses the field's own.
        samples: steps per ray.
        chunk: number of rays rendered at a time.
        jitter_R: see :func:`march`.

    Returns:
        rgb [R, 3], acc [R] and depth [R].
    """
    if background is None:
        background = torch.tensor(field.background, device=origins.device)
    background = background.expand(len(origins), 3)
    parts = []
    for start in range(0, max(len(origins), 1), chunk):
        rows = slice(start, start + chunk)
        jitter = None if jitter_R is None else jitter_R[rows]
        points = ray_points(field, origins[rows], dirs[rows], samples, jitter)
        values = field.query(points.x_N3, points.d_N3, ("sigma", "rgb"))
        parts.append(points.composite(values["sigma"], values["rgb"], background[rows]))
    rgb, acc, depth = (torch.cat(part) for part in zip(*parts, strict=True))
    return {"rgb": rgb, "acc": acc, "depth": depth}
