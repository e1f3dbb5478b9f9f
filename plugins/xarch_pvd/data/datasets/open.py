"""Opening of a folder of posed images in any supported format."""

from __future__ import annotations

from pathlib import Path

from xarch import UsageError
from xarch_pvd.data.datasets.blender import read_blender, transforms_file
from xarch_pvd.data.datasets.colmap import read_colmap
from xarch_pvd.data.datasets.colmap_model import model_folder
from xarch_pvd.data.datasets.llff import read_llff
from xarch_pvd.data.datasets.nsvf import read_nsvf
from xarch_pvd.data.datasets.posed import PosedImages
from xarch_pvd.data.datasets.splits import SPLITS, check_split

KINDS = {"blender": read_blender, "colmap": read_colmap, "llff": read_llff, "nsvf": read_nsvf}


def recognise(path: Path) -> str:
    """Return "blender", "llff", "nsvf" or "colmap" from file names, the same for all splits.

    A COLMAP model takes precedence over a table ``poses_bounds.npy`` derived from it: mip-NeRF 360 has both, and the
    table lacks lens distortion.

    Raises:
        UsageError: the format is unknown; lists the expected files.
    """
    if not path.exists():
        raise UsageError(f"{path} does not exist")
    if any(transforms_file(path, split) is not None for split in SPLITS):
        return "blender"
    if model_folder(path) is not None:
        return "colmap"
    if (path / "poses_bounds.npy").is_file():
        return "llff"
    if (path / "intrinsics.txt").is_file() and (path / "pose").is_dir():
        return "nsvf"
    raise UsageError(
        f"{path} is not a known set of posed images",
        "looked for transforms_train.json or transforms.json (Blender, instant-ngp, nerfstudio), poses_bounds.npy "
        "(LLFF), intrinsics.txt with pose/ (NSVF), cameras and images .bin or .txt here or in sparse/0 (COLMAP)",
    )


def open_posed(path: Path | str, split: str = "train", downscale: int = 1, kind: str = "auto") -> PosedImages:
    """Open the cameras of a split; images are read on demand.

    Args:
        split: "train", "val" or "test".
        downscale: integer divisor of widths, heights and focal lengths.
        kind: one of :data:`KINDS`, or "auto" to detect it.

    Raises:
        UsageError: the format is unknown, or a file is damaged.
    """
    check_split(split)
    if downscale < 1:
        raise UsageError(f"downscale is {downscale}, expected a whole number of 1 or more")
    path = Path(path)
    return KINDS[recognise(path) if kind == "auto" else kind](path, split, downscale)
