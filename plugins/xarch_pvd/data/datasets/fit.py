"""Fitting of a scene's box to its cameras, and rejection of boxes that rays miss.

A wrong box is the most common reason why a radiance field learns nothing: the reference code of progressive volume
distillation requires manual tuning for every scene.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from xarch import UsageError
from xarch_pvd.data.datasets.posed import PosedImages

Box = tuple[float, float, float, float, float, float]
MIN_HIT = 0.5
INWARD = 0.8
"""Share of cameras that must look towards the meeting point of the optical axes."""
ROOM = 1.1
PROBE_VIEWS, PROBE_PIXELS = 64, 256


@dataclass(frozen=True, slots=True)
class SceneBox:
    """Location of a scene.

    Attributes:
        aabb: box in the world of the cameras; for ``contract_inf`` the uncontracted part.
        warp: "aabb", or "contract_inf" if cameras look outwards.
        scale: factor that makes the longest half side 1.
        how: what it was derived from.
        hit: share of all rays that cross it.
    """

    aabb: Box
    warp: str
    scale: float
    how: str
    hit: float

    @property
    def corners(self) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
        """Return the lower and upper corner."""
        x0, y0, z0, x1, y1, z1 = self.aabb
        return (x0, y0, z0), (x1, y1, z1)


def fit_box(posed: PosedImages) -> SceneBox:
    """Derive the box from, in order: the files; reconstructed points; depth bounds; the intersection of optical axes.

    Raises:
        UsageError: fewer than half of the rays cross the best box.
    """
    warp = "aabb"
    if posed.box is not None:
        box, how = posed.box, "the files"
    elif posed.points is not None and len(posed.points) >= 100:
        box, how = _around(posed.points), "reconstructed points"
    elif posed.near_far is not None:
        box, how = _around(_frustums(posed, posed.near_far), share=0.0), "near and far depths"
    else:
        middle, share = meeting_point(posed)
        if share >= INWARD:
            box, how = _seen(posed, middle), "the meeting point of the optical axes"
        else:
            box, how, warp = (
                _around(posed.c2w[:, :3, 3], share=0.0),
                "camera positions, looking outwards",
                "contract_inf",
            )
            box = _cube(box)
    hit = check_box(posed, box, warp=warp, how=how)
    scale = 2 / max(box[a + 3] - box[a] for a in range(3))
    return SceneBox(box, warp, scale, how, hit)


def check_box(posed: PosedImages, box: Sequence[float], *, warp: str = "aabb", how: str = "the options") -> float:
    """Return the share of rays that cross ``box``; all rays cross a contracted field.

    Raises:
        UsageError: fewer than half cross it.
    """
    if warp != "aabb":
        return 1.0
    views = torch.linspace(0, len(posed) - 1, min(len(posed), PROBE_VIEWS)).round().long().tolist()
    hits, total = 0, 0
    for view in views:
        pixels = posed.widths[view] * posed.heights[view]
        chosen = torch.linspace(0, pixels - 1, min(pixels, PROBE_PIXELS)).round().long()
        origins, dirs = posed.rays(view, chosen)
        hits += int(crosses(origins, dirs, box).sum())
        total += len(chosen)
    share = hits / total
    if share < MIN_HIT:
        shown = ", ".join(f"{v:.4g}" for v in box)
        raise UsageError(
            f"only {share:.0%} of the rays of this {posed.kind} data set cross the box ({shown}) from {how}, expected "
            f"at least {MIN_HIT:.0%}",
            f"set a box that contains what the cameras see (option aabb); they lie within {_span(posed)}",
        )
    return share


def crosses(origins: Tensor, dirs: Tensor, box: Sequence[float]) -> Tensor:
    """Return whether rays cross the box in front of their origin, bool [P]."""
    low, high = torch.tensor(box[:3]), torch.tensor(box[3:])
    safe = torch.where(dirs.abs() < 1e-9, torch.full_like(dirs, 1e-9), dirs)
    first, second = (low - origins) / safe, (high - origins) / safe
    near, far = torch.minimum(first, second).amax(-1), torch.maximum(first, second).amin(-1)
    return far > near.clamp(min=0)


def meeting_point(posed: PosedImages) -> tuple[Tensor, float]:
    """Return the least-squares nearest point [3] to all optical axes, and the share of cameras facing it."""
    places, axes = posed.c2w[:, :3, 3].double(), -posed.c2w[:, :3, 2].double()
    across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None, :]
    matrix = across.sum(0)
    if float(torch.linalg.eigvalsh(matrix)[0]) < 1e-3 * len(posed):
        return places.mean(0), 0.0
    middle = torch.linalg.solve(matrix, (across @ places[:, :, None]).sum(0)[:, 0])
    towards = torch.nn.functional.normalize(middle - places, dim=-1)
    # Within 25 degrees a camera frames the point, whatever else it sees.
    return middle, float(((towards * axes).sum(-1) > 0.9).double().mean())


def _seen(posed: PosedImages, middle: Tensor) -> Box:
    """Return the cube visible around a point: median distance times the tangent of half the wider view angle."""
    away = (posed.c2w[:, :3, 3].double() - middle).norm(dim=-1)
    wide = torch.tensor(posed.widths).double() / posed.fx
    high = torch.tensor(posed.heights).double() / posed.fy
    half = float((away * torch.maximum(wide, high) / 2).median())
    # A box that contains a camera would put matter in front of its lens.
    half = min(half, float(away.min()) * 0.9)
    x, y, z = middle.tolist()
    return (x - half, y - half, z - half, x + half, y + half, z + half)


def _frustums(posed: PosedImages, near_far: Tensor) -> Tensor:
    corners = []
    for view in range(len(posed)):
        width, height = posed.widths[view], posed.heights[view]
        ends = torch.tensor([0, width - 1, width * (height - 1), width * height - 1])
        origins, dirs = posed.rays(view, ends)
        depth = -(dirs.double() @ posed.c2w[view, :3, 2])
        corners += [origins + dirs * (float(t) / depth)[:, None] for t in near_far[view]]
    return torch.cat(corners)


def _around(points: Tensor, share: float = 0.01) -> Box:
    low = torch.quantile(points[:: max(1, len(points) // 100_000)].double(), share, dim=0)
    high = torch.quantile(points[:: max(1, len(points) // 100_000)].double(), 1 - share, dim=0)
    middle, half = (low + high) / 2, (high - low) / 2
    half = half.clamp(min=max(1e-3 * float(half.max()), 1e-6)) * ROOM
    x0, y0, z0, x1, y1, z1 = [*(middle - half).tolist(), *(middle + half).tolist()]
    return (x0, y0, z0, x1, y1, z1)


def _cube(box: Box) -> Box:
    half = max(box[a + 3] - box[a] for a in range(3)) / 2
    x, y, z = ((box[a] + box[a + 3]) / 2 for a in range(3))
    return (x - half, y - half, z - half, x + half, y + half, z + half)


def _span(posed: PosedImages) -> str:
    places = posed.c2w[:, :3, 3]
    low, high = places.amin(0).tolist(), places.amax(0).tolist()
    return f"({', '.join(f'{v:.3g}' for v in low)}) to ({', '.join(f'{v:.3g}' for v in high)})"
