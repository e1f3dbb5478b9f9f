"""The same cameras written as every format, as the programs that define the formats do."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from xarch_field import sphere_pose

WIDTH, HEIGHT, FOCAL = 24, 16, 30.0


def cameras(count: int, *, forward: bool = False) -> Tensor:
    """Camera-to-world [N,4,4] float64, OpenGL axes: on a sphere, or side by side looking forward."""
    if forward:
        poses = torch.eye(4, dtype=torch.float64).repeat(count, 1, 1)
        poses[:, 0, 3] = torch.linspace(-0.5, 0.5, count, dtype=torch.float64)
        poses[:, 1, 3] = torch.sin(torch.arange(count)).double() * 0.2
        return poses
    return torch.stack([sphere_pose(2 * math.pi * i / count, 0.2 + 0.05 * i, 3.2) for i in range(count)]).double()


def pictures(folder: Path, names: list[str], mode: str = "RGB") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    for name in names:
        shape = (HEIGHT, WIDTH, len(mode))
        Image.fromarray(rng.integers(0, 256, shape, dtype=np.uint8)).save(folder / name)


def expected_rays(pose: Tensor) -> tuple[Tensor, Tensor]:
    """Origins and directions of all pixels by the definition, in float64, loops and all."""
    origins, dirs = [], []
    for row in range(HEIGHT):
        for column in range(WIDTH):
            local = torch.tensor(
                [(column + 0.5 - WIDTH / 2) / FOCAL, -(row + 0.5 - HEIGHT / 2) / FOCAL, -1.0], dtype=torch.float64
            )
            direction = pose[:3, :3] @ local
            dirs.append(direction / direction.norm())
            origins.append(pose[:3, 3])
    return torch.stack(origins), torch.stack(dirs)


def write_blender(folder: Path, poses: Tensor, **extra: float | str) -> None:
    """``transforms_train.json`` in NeRF's own form, pictures beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    names = [f"r_{i}" for i in range(len(poses))]
    pictures(folder / "train", [f"{n}.png" for n in names], "RGBA")
    angle = 2 * math.atan(0.5 * WIDTH / FOCAL)
    frames = [{"file_path": f"./train/{n}", "transform_matrix": p.tolist()} for n, p in zip(names, poses, strict=True)]
    document = {"camera_angle_x": angle, "frames": frames, **extra}
    (folder / "transforms_train.json").write_text(json.dumps(document))


def write_llff(folder: Path, poses: Tensor, near: float = 2.0, far: float = 6.0) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    pictures(folder / "images", [f"{i:03d}.png" for i in range(len(poses))])
    rows = []
    for pose in poses:
        right, up, back, place = (pose[:3, k] for k in range(4))
        size = torch.tensor([HEIGHT, WIDTH, FOCAL], dtype=torch.float64)
        table = torch.stack([-up, right, back, place, size], dim=-1)
        rows.append([*table.flatten().tolist(), near, far])
    np.save(folder / "poses_bounds.npy", np.array(rows))


def quaternion(turned: Tensor) -> list[float]:
    """(w, x, y, z) of a rotation [3,3], by the eigenvector of its quadratic form."""
    r = turned
    form = torch.tensor(
        [
            [r[0, 0] - r[1, 1] - r[2, 2], 0, 0, 0],
            [r[1, 0] + r[0, 1], r[1, 1] - r[0, 0] - r[2, 2], 0, 0],
            [r[2, 0] + r[0, 2], r[2, 1] + r[1, 2], r[2, 2] - r[0, 0] - r[1, 1], 0],
            [r[2, 1] - r[1, 2], r[0, 2] - r[2, 0], r[1, 0] - r[0, 1], r[0, 0] + r[1, 1] + r[2, 2]],
        ],
        dtype=torch.float64,
    )
    _, vectors = torch.linalg.eigh(form / 3)
    x, y, z, w = vectors[:, -1].tolist()
    return [w, x, y, z]


def write_colmap(
    folder: Path, poses: Tensor, *, binary: bool = True, model: int = 1, lens: tuple[float, ...] = ()
) -> None:
    """A sparse model with one camera; ``lens`` are its distortion terms."""
    sparse = folder / "sparse" / "0"
    sparse.mkdir(parents=True)
    names = [f"view_{i:02d}.png" for i in range(len(poses))]
    pictures(folder / "images", names)
    both = (FOCAL, FOCAL) if model in (1, 4) else (FOCAL,)
    parameters = (*both, WIDTH / 2, HEIGHT / 2, *lens)
    rows = []
    for pose in poses:
        turned = (pose[:3, :3] * torch.tensor([1.0, -1.0, -1.0], dtype=torch.float64)).T
        rows.append((quaternion(turned), (-turned @ pose[:3, 3]).tolist()))
    points = torch.rand(200, 3, generator=torch.Generator().manual_seed(0)) - 0.5
    if binary:
        camera = struct.pack("<QIiQQ", 1, 7, model, WIDTH, HEIGHT) + struct.pack(f"<{len(parameters)}d", *parameters)
        (sparse / "cameras.bin").write_bytes(camera)
        data = struct.pack("<Q", len(rows))
        for number, ((q, t), name) in enumerate(zip(rows, names, strict=True)):
            data += struct.pack("<I7dI", number + 1, *q, *t, 7) + name.encode() + b"\0"
            data += struct.pack("<Q", 2) + struct.pack("<ddqddq", 1, 2, -1, 3, 4, 5)
        (sparse / "images.bin").write_bytes(data)
        data = struct.pack("<Q", len(points))
        for number, point in enumerate(points.tolist()):
            data += struct.pack("<Q3d3Bd", number, *point, 1, 2, 3, 0.5) + struct.pack("<QII", 1, 1, 0)
        (sparse / "points3D.bin").write_bytes(data)
        return
    kinds = {0: "SIMPLE_PINHOLE", 1: "PINHOLE", 2: "SIMPLE_RADIAL", 3: "RADIAL", 4: "OPENCV", 5: "OPENCV_FISHEYE"}
    numbers = " ".join(map(repr, parameters))
    (sparse / "cameras.txt").write_text(f"# cameras\n7 {kinds[model]} {WIDTH} {HEIGHT} {numbers}\n")
    lines = ["# images"]
    for number, ((q, t), name) in enumerate(zip(rows, names, strict=True)):
        lines += [f"{number + 1} {' '.join(map(repr, q + t))} 7 {name}", "" if number % 2 else "1.0 2.0 -1"]
    (sparse / "images.txt").write_text("\n".join(lines) + "\n")
    text = "".join(f"{i} {x!r} {y!r} {z!r} 1 2 3 0.5 1 0\n" for i, (x, y, z) in enumerate(points.tolist()))
    (sparse / "points3D.txt").write_text("# points\n" + text)


def write_nsvf(folder: Path, poses: Tensor) -> None:
    (folder / "pose").mkdir(parents=True)
    prefixes = ["0", "0", "0", "1"]
    names = [f"{prefixes[i % 4]}_{i:04d}" for i in range(len(poses))]
    pictures(folder / "rgb", [f"{n}.png" for n in names])
    matrix = np.array([[FOCAL, 0, WIDTH / 2, 0], [0, FOCAL, HEIGHT / 2, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    np.savetxt(folder / "intrinsics.txt", matrix)
    (folder / "bbox.txt").write_text("-1 -1 -0.5 1 1 0.5 0.1\n")
    for name, pose in zip(names, poses, strict=True):
        flipped = pose.clone()
        flipped[:, 1:3] *= -1
        np.savetxt(folder / "pose" / f"{name}.txt", flipped.numpy())
