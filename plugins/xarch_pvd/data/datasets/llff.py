"""LLFF folders (arXiv 1905.00889): ``poses_bounds.npy`` and ``images/``, sorted by name.

A row has 3x5 numbers [R | t | (height, width, focal)] and the near and far depth. The columns of R point down, right
and back. The world is recentred on the average pose and scaled so that the nearest depth becomes 4/3, as NeRF does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError
from xarch_pvd.data.datasets.pictures import is_picture
from xarch_pvd.data.datasets.posed import PosedImages, intrinsics
from xarch_pvd.data.datasets.sizes import view_size
from xarch_pvd.data.datasets.splits import held_out
from xarch_pvd.source.formats.npz_file import read_npy

NEAREST = 0.75


def read_llff(path: Path, split: str = "train", downscale: int = 1, *, recentre: bool = True) -> PosedImages:
    """Read the views of a split; every 8th is held out.

    Args:
        recentre: if False, keep the world of the file.

    Raises:
        UsageError: the file is not a table [N,17], or the number of images differs.
    """
    file = path / "poses_bounds.npy"
    rows = read_npy(file)
    if rows.ndim != 2 or rows.shape[1] != 17 or rows.dtype.kind != "f" or not np.isfinite(rows).all():
        raise UsageError(f"{file} holds {rows.dtype} {rows.shape}, expected finite numbers [N, 17]")
    table = torch.from_numpy(rows.astype(np.float64))
    cameras = table[:, :15].view(-1, 3, 5)
    turned = cameras[:, :, :3]
    c2w = torch.eye(4, dtype=torch.float64).repeat(len(table), 1, 1)
    c2w[:, :3] = torch.stack([turned[:, :, 1], -turned[:, :, 0], turned[:, :, 2], cameras[:, :, 3]], dim=-1)
    bounds = table[:, 15:]
    if not bool((bounds[:, 0] > 0).all() and (bounds[:, 1] > bounds[:, 0]).all()):
        raise UsageError(f"{file} has depths that violate 0 < near < far")
    if recentre:
        scale = 1 / (NEAREST * float(bounds.min()))
        c2w = torch.linalg.inv(average_pose(c2w)) @ c2w
        c2w[:, :3, 3] *= scale
        bounds = bounds * scale
    height, width, focal = (float(v) for v in cameras[0, :, 4])
    if not bool((cameras[:, :, 4] == cameras[0, :, 4]).all()):
        raise UsageError(f"{file} has cameras of different size or focal length; LLFF data has one")
    names, left = _pictures(path, len(table), downscale)
    views = held_out(len(table), split)
    sizes = [view_size(name, round(width), round(height), left) for name in names]
    across, down = (torch.tensor([getattr(s, n) for s in sizes], dtype=torch.float64) for n in ("across", "down"))
    lens = intrinsics(len(table), fx=focal, fy=focal, cx=width / 2, cy=height / 2)
    return PosedImages(
        files=tuple(names),
        names=tuple(n.stem for n in names),
        c2w=c2w,
        widths=tuple(s.width for s in sizes),
        heights=tuple(s.height for s in sizes),
        fx=lens["fx"] * across,
        fy=lens["fy"] * down,
        cx=lens["cx"] * across,
        cy=lens["cy"] * down,
        distortion=lens["distortion"],
        split=split,
        kind="llff",
        near_far=bounds,
    ).select(views)


def average_pose(c2w: Tensor) -> Tensor:
    """Return the pose [4,4] with mean position, mean viewing direction and mean up vector."""
    back = c2w[:, :3, 2].sum(0)
    right = torch.linalg.cross(c2w[:, :3, 1].sum(0), back)
    if float(back.norm()) < 1e-9 or float(right.norm()) < 1e-9:
        raise UsageError(
            "the viewing directions cancel out: these cameras look inwards, but LLFF data is forward-facing"
        )
    back, right = back / back.norm(), right / right.norm()
    pose = torch.eye(4, dtype=c2w.dtype)
    pose[:3] = torch.stack([right, torch.linalg.cross(back, right), back, c2w[:, :3, 3].mean(0)], dim=-1)
    return pose


def _pictures(path: Path, count: int, downscale: int) -> tuple[list[Path], int]:
    """Return the images, from a scaled folder if available, and the remaining divisor.

    Without any images, the names do not exist.
    """
    for folder, left in ((path / f"images_{downscale}", 1), (path / "images", downscale)):
        found = sorted(p for p in folder.glob("*") if is_picture(p))
        if found and len(found) != count:
            raise UsageError(f"{folder} has {len(found)} images, but poses_bounds.npy has {count} cameras")
        if found:
            return found, left
    return [path / "images" / f"{v:03d}.png" for v in range(count)], downscale
