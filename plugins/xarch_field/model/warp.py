"""From world points to the unit cube a field stores: the box itself, the contractions, normalised device coordinates.

Sources: scene contraction, Mip-NeRF 360 (arXiv 2111.12077); normalised device coordinates, NeRF (arXiv 2003.08934,
appendix C). Legend: N points, 3 = x, y, z.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from xarch import UsageError

WARPS = ("aabb", "contract_inf", "contract_l2", "ndc")


def to_unit(x_N3: Tensor, aabb_23: Tensor, warp: str = "aabb", parameters: Sequence[float] = ()) -> Tensor:
    """Map world points to u in [0, 1]³; points that the field does not cover fall outside.

    Args:
        x_N3: world points.
        aabb_23: lower and upper corner: of the box ("aabb"), of the part that is not contracted ("contract_*"), or of
            the stored box in normalised device coordinates ("ndc").
        warp: one of :data:`WARPS`.
        parameters: for "ndc" (2 focal / width, 2 focal / height, near plane), else empty.

    Raises:
        UsageError: unknown warp, or "ndc" without its three parameters.
    """
    if warp == "aabb":
        return _normalise(x_N3, aabb_23)
    if warp in ("contract_inf", "contract_l2"):
        return (contract(2 * _normalise(x_N3, aabb_23) - 1, warp) + 2) / 4
    if warp == "ndc":
        return _normalise(to_ndc(x_N3, *_camera(parameters)), aabb_23)
    raise _unknown(warp)


def to_world(u_N3: Tensor, aabb_23: Tensor, warp: str = "aabb", parameters: Sequence[float] = ()) -> Tensor:
    """Invert :func:`to_unit`; the far faces of a contraction lie at a large but finite distance.

    Raises:
        UsageError: as for :func:`to_unit`.
    """
    if warp == "aabb":
        return _denormalise(u_N3, aabb_23)
    if warp in ("contract_inf", "contract_l2"):
        return _denormalise((_expand(4 * u_N3 - 2, warp) + 1) / 2, aabb_23)
    if warp == "ndc":
        return from_ndc(_denormalise(u_N3, aabb_23), *_camera(parameters))
    raise _unknown(warp)


def contract(v_N3: Tensor, warp: str) -> Tensor:
    """Return v where ‖v‖ < 1, else (2 − 1/‖v‖) v/‖v‖, in the maximum norm or the Euclidean norm."""
    norm = _norm(v_N3, warp).clamp_min(1.0)
    return v_N3 * ((2 - 1 / norm) / norm)


def to_ndc(x_N3: Tensor, focal_x: float, focal_y: float, near: float) -> Tensor:
    """Map points in front of a camera looking along −z to the cube [−1, 1]³ of its frustum beyond ``near``."""
    x, y, z = x_N3.unbind(-1)
    depth = torch.where(z.abs() < 1e-9, torch.full_like(z, -1e-9), z)
    return torch.stack((-focal_x * x / depth, -focal_y * y / depth, 1 + 2 * near / depth), dim=-1)


def from_ndc(p_N3: Tensor, focal_x: float, focal_y: float, near: float) -> Tensor:
    """Invert :func:`to_ndc`; depth is limited to a million times ``near``."""
    x, y, z = p_N3.unbind(-1)
    depth = 2 * near / (z - 1).clamp_max(-2e-6)
    return torch.stack((-x * depth / focal_x, -y * depth / focal_y, depth), dim=-1)


def _normalise(x_N3: Tensor, aabb_23: Tensor) -> Tensor:
    return (x_N3 - aabb_23[0]) / (aabb_23[1] - aabb_23[0])


def _denormalise(u_N3: Tensor, aabb_23: Tensor) -> Tensor:
    return aabb_23[0] + u_N3 * (aabb_23[1] - aabb_23[0])


def _norm(v_N3: Tensor, warp: str) -> Tensor:
    if warp == "contract_inf":
        return v_N3.abs().amax(dim=-1, keepdim=True)
    return (v_N3 * v_N3).sum(dim=-1, keepdim=True).sqrt()


def _expand(c_N3: Tensor, warp: str) -> Tensor:
    norm = _norm(c_N3, warp).clamp(1.0, 2 - 1e-4)
    return c_N3 / (norm * (2 - norm))


def _camera(parameters: Sequence[float]) -> tuple[float, float, float]:
    if len(parameters) != 3:
        raise UsageError(f"warp 'ndc' needs (2 focal / width, 2 focal / height, near), got {tuple(parameters)}")
    focal_x, focal_y, near = parameters
    return focal_x, focal_y, near


def _unknown(warp: str) -> UsageError:
    return UsageError(f"unknown warp {warp!r} of a field", f"known warps: {', '.join(WARPS)}")
