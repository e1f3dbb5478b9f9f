"""NSVF folders (arXiv 2007.11571), also its Tanks and Temples: ``intrinsics.txt``, ``pose/*.txt``, ``rgb/*``.

Poses are camera-to-world 4x4 with OpenCV axes. ``bbox.txt`` holds six corners and a voxel size; the box is enlarged by
a fifth. The prefix of a name gives its split: 0 train, 1 validation, 2 test; without 2 the test split is 1.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from xarch import UsageError, regular_text
from xarch_pvd.data.datasets.pictures import find_picture, picture_size
from xarch_pvd.data.datasets.posed import PosedImages, intrinsics
from xarch_pvd.data.datasets.splits import check_split

ENLARGE = 1.2
MAX_BYTES = 1 << 20
FLIP = torch.diag(torch.tensor([1.0, -1.0, -1.0, 1.0], dtype=torch.float64))


def read_nsvf(path: Path, split: str = "train", downscale: int = 1) -> PosedImages:
    """Read the views of a split.

    Raises:
        UsageError: a file is missing or malformed.
    """
    check_split(split)
    poses = sorted((path / "pose").glob("*.txt"))
    prefix = {"train": "0_", "val": "1_", "test": "2_"}[split]
    if split == "test" and not any(p.name.startswith("2_") for p in poses):
        prefix = "1_"
    chosen = [p for p in poses if p.name.startswith(prefix)]
    if not chosen:
        raise UsageError(f"{path / 'pose'} has no {prefix}*.txt ({len(poses)} poses in all)")
    c2w = torch.stack([_matrix(p) for p in chosen]) @ FLIP
    fx, fy, cx, cy = _lens(path / "intrinsics.txt")
    files = [_picture(path / "rgb", p.stem) for p in chosen]
    stored = next((picture_size(f) for f in files if f.is_file()), None)
    # Without images, the size follows from the principal point, which is at the centre in these files.
    width, height = stored if stored else (round(2 * cx), round(2 * cy))
    shared = {"fx": fx / downscale, "fy": fy / downscale, "cx": cx / downscale, "cy": cy / downscale}
    lens = intrinsics(len(chosen), **shared)
    return PosedImages(
        files=tuple(files),
        names=tuple(p.stem for p in chosen),
        c2w=c2w,
        widths=(width // downscale,) * len(chosen),
        heights=(height // downscale,) * len(chosen),
        fx=lens["fx"],
        fy=lens["fy"],
        cx=lens["cx"],
        cy=lens["cy"],
        distortion=lens["distortion"],
        split=split,
        kind="nsvf",
        background=(1.0, 1.0, 1.0),
        box=_box(path / "bbox.txt"),
    )


def _numbers(file: Path) -> list[float]:
    try:
        if file.stat().st_size > MAX_BYTES:
            raise UsageError(f"{file} has more than {MAX_BYTES} bytes, expected a few numbers")
        return [float(v) for v in regular_text(file).split()]
    except (OSError, ValueError) as e:
        raise UsageError(f"{file} holds no numbers: {e}") from e


def _matrix(file: Path) -> Tensor:
    numbers = _numbers(file)
    if len(numbers) not in (12, 16):
        raise UsageError(f"{file} holds {len(numbers)} numbers, expected a 4x4 matrix")
    matrix = torch.eye(4, dtype=torch.float64)
    matrix[:3] = torch.tensor(numbers[:12], dtype=torch.float64).view(3, 4)
    return matrix


def _lens(file: Path) -> tuple[float, float, float, float]:
    """Read a 4x4 matrix, or a first line of focal length and principal point (synthetic scenes of NSVF)."""
    numbers = _numbers(file)
    if len(numbers) == 16:
        return numbers[0], numbers[5], numbers[2], numbers[6]
    if len(numbers) >= 4:
        return numbers[0], numbers[0], numbers[1], numbers[2]
    raise UsageError(f"{file} holds {len(numbers)} numbers, expected a 4x4 matrix")


def _picture(folder: Path, stem: str) -> Path:
    return find_picture(folder / stem)


def _box(file: Path) -> tuple[float, float, float, float, float, float] | None:
    if not file.is_file():
        return None
    numbers = _numbers(file)
    if len(numbers) < 6:
        raise UsageError(f"{file} holds {len(numbers)} numbers, expected six of a box")
    low, high = torch.tensor(numbers[:3]), torch.tensor(numbers[3:6])
    middle, half = (low + high) / 2, (high - low) / 2 * ENLARGE
    x0, y0, z0, x1, y1, z1 = [*(middle - half).tolist(), *(middle + half).tolist()]
    return (x0, y0, z0, x1, y1, z1)
