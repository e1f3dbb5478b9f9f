"""Reader of COLMAP reconstructions as posed images; every 8th view by name is held out.

The world is COLMAP's. Its pixel coordinates place the centre of the first pixel at (0.5, 0.5), as here.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from xarch import UsageError
from xarch_pvd.data.datasets.colmap_model import ColmapCamera, model_folder, read_cameras, read_images, read_points
from xarch_pvd.data.datasets.pictures import find_picture, is_picture, named_path
from xarch_pvd.data.datasets.posed import PosedImages
from xarch_pvd.data.datasets.sizes import view_size
from xarch_pvd.data.datasets.splits import held_out

READ = {
    "SIMPLE_PINHOLE": ("f", "cx", "cy"),
    "PINHOLE": ("fx", "fy", "cx", "cy"),
    "SIMPLE_RADIAL": ("f", "cx", "cy", "k1"),
    "RADIAL": ("f", "cx", "cy", "k1", "k2"),
    "OPENCV": ("fx", "fy", "cx", "cy", "k1", "k2", "p1", "p2"),
}


def read_colmap(path: Path, split: str = "train", downscale: int = 1) -> PosedImages:
    """Read the views of a split.

    Raises:
        UsageError: there is no model, files are damaged, or a lens is not supported (fisheye and richer models).
    """
    folder = model_folder(path)
    if folder is None:
        raise UsageError(f"{path} has no cameras and images (.bin or .txt), neither directly nor in sparse/0")
    lenses = {number: _lens(camera, folder) for number, camera in read_cameras(folder).items()}
    images = read_images(folder)
    if not images:
        raise UsageError(f"{folder} has no registered images")
    missing = sorted({i.camera for i in images} - set(lenses))
    if missing:
        raise UsageError(f"{folder}: images refer to missing cameras {missing[:5]}")
    chosen = [images[v] for v in held_out(len(images), split)]
    rows = [lenses[i.camera] for i in chosen]
    files, left = _pictures(path, [i.name for i in images], downscale)
    files = [files[v] for v in held_out(len(images), split)]
    sizes = [view_size(f, int(r["w"]), int(r["h"]), left) for f, r in zip(files, rows, strict=True)]

    def column(name: str) -> Tensor:
        factors = (s.across if name in ("fx", "cx") else s.down for s in sizes)
        return torch.tensor([row[name] * f for row, f in zip(rows, factors, strict=True)], dtype=torch.float64)

    points = read_points(folder)
    return PosedImages(
        files=tuple(files),
        names=tuple(i.name for i in chosen),
        c2w=torch.stack([_pose(i.quaternion, i.translation, i.name) for i in chosen]),
        widths=tuple(s.width for s in sizes),
        heights=tuple(s.height for s in sizes),
        fx=column("fx"),
        fy=column("fy"),
        cx=column("cx"),
        cy=column("cy"),
        distortion=torch.tensor([[r[k] for k in ("k1", "k2", "p1", "p2")] for r in rows], dtype=torch.float64),
        split=split,
        kind="colmap",
        points=None if points is None or len(points) == 0 else torch.from_numpy(points),
    )


def _pictures(path: Path, names: list[str], downscale: int) -> tuple[list[Path], int]:
    """Return the file of every image and the remaining divisor: a folder ``images_4`` has them at a quarter already.

    Files are matched by name, or by order if a scaled folder renamed them all.
    """
    scaled = path / f"images_{downscale}"
    folder, left = (scaled, 1) if downscale > 1 and scaled.is_dir() else (path / "images", downscale)
    files = [
        file if file.is_file() else find_picture(file.with_suffix(""))
        for file in (named_path(folder, name) for name in names)
    ]
    if folder is scaled and not any(f.is_file() for f in files):
        there = sorted(p for p in folder.iterdir() if is_picture(p))
        if len(there) == len(files):
            files = [there[place] for place in sorted(range(len(names)), key=names.__getitem__)]
    return [f if f.is_file() else folder / name for f, name in zip(files, names, strict=True)], left


def _lens(camera: ColmapCamera, folder: Path) -> dict[str, float]:
    names = READ.get(camera.model)
    if names is None:
        raise UsageError(
            f"{folder} has a camera of model {camera.model}; supported models: {', '.join(READ)}",
            "undistort the images first (colmap image_undistorter)",
        )
    if len(names) != len(camera.parameters):
        raise UsageError(
            f"{folder}: a {camera.model} camera has {len(camera.parameters)} numbers, expected {len(names)}"
        )
    said = dict(zip(names, camera.parameters, strict=True))
    focal = said.get("f", 0.0)
    usual = {"fx": focal, "fy": focal, "k1": 0.0, "k2": 0.0, "p1": 0.0, "p2": 0.0}
    return usual | said | {"w": float(camera.width), "h": float(camera.height)}


def _pose(quaternion: tuple[float, ...], translation: tuple[float, ...], name: str) -> Tensor:
    """Convert COLMAP's world-to-camera with OpenCV axes to camera-to-world [4,4] with OpenGL axes."""
    q = torch.tensor(quaternion, dtype=torch.float64)
    if not 1e-6 < float(q.norm()) < 1e6:
        raise UsageError(f"image {name} has quaternion {quaternion}, which is not a rotation")
    w, x, y, z = (q / q.norm()).tolist()
    turned = torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )
    pose = torch.eye(4, dtype=torch.float64)
    pose[:3, :3] = turned.T * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)
    pose[:3, 3] = -turned.T @ torch.tensor(translation, dtype=torch.float64)
    return pose
