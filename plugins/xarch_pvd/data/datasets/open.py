"""Opening a folder of posed images of whatever format it is."""

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
    """ "blender", "llff", "nsvf" or "colmap", told from the names of files, the same for all splits.

    A COLMAP model is taken before the table ``poses_bounds.npy`` that was made from it: mip-NeRF 360 ships both, and
    the table knows no lens.

    Raises:
        UsageError: none of them; the message names what was looked for.
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
        f"{path} is no known set of posed images",
        "looked for transforms_train.json or transforms.json (Blender, instant-ngp, nerfstudio), poses_bounds.npy "
        "(LLFF), intrinsics.txt with pose/ (NSVF), cameras and images .bin or .txt here or in sparse/0 (COLMAP)",
    )


def open_posed(path: Path | str, split: str = "train", downscale: int = 1, kind: str = "auto") -> PosedImages:
    """Cameras of one split; pictures stay closed until they are asked for.

    Args:
        split: "train", "val" or "test".
        downscale: whole number that widths, heights and focal lengths are divided by.
        kind: one of :data:`KINDS`, or "auto" to tell it from the files.

    Raises:
        UsageError: nothing known is there, or a file is damaged.
    """
    check_split(split)
    if downscale < 1:
        raise UsageError(f"downscale is {downscale}, wanted a whole number of 1 or more")
    path = Path(path)
    return KINDS[recognise(path) if kind == "auto" else kind](path, split, downscale)
