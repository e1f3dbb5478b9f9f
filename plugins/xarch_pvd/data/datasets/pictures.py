"""Reader of single images at the size of their camera."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError

MAX_PIXELS = 100_000_000
"""Ten thousand by ten thousand; a picture needs some twenty bytes a pixel while it is read."""
MAX_NAME, MAX_PATH = 240, 2000
"""Bytes of a name and of a path that leave room for a suffix and for the folder."""
OTHERS = frozenset({"EPS", "WMF", "FPX", "MIC", "PDF", "MPEG", "BUFR", "GRIB", "HDF5", "PALM", "XVTHUMB"})
"""Kinds of Pillow that are no pictures of a camera, or are drawn by another program (PostScript by Ghostscript)."""
FIRST = (".png", ".jpg", ".jpeg")
"""Suffixes tried first for a name without one."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
"""Modes of 16-bit grey, which Pillow would clip at 255."""


@lru_cache(maxsize=1)
def suffixes() -> frozenset[str]:
    """Return the lower-case suffixes of every image format that Pillow reads."""
    from PIL import Image

    return frozenset(suffix for suffix, kind in Image.registered_extensions().items() if kind in _kinds())


@lru_cache(maxsize=1)
def _kinds() -> tuple[str, ...]:
    from PIL import Image

    Image.init()
    return tuple(kind for kind in Image.OPEN if kind not in OTHERS)


def is_picture(path: Path) -> bool:
    """Return whether a file is an image, judging by its name."""
    return path.suffix.lower() in suffixes()


def named_path(folder: Path, name: str) -> Path:
    """Return the path of a name that a file of cameras gives.

    Raises:
        UsageError: no file can have so long a name.
    """
    raw = name.encode("utf-8", "surrogatepass")
    if len(raw) > MAX_PATH or max(map(len, raw.split(b"/"))) > MAX_NAME:
        raise UsageError(f"{name[:60]!r}... ({len(name)} characters) is too long for the name of a picture")
    return folder / name


def find_picture(path: Path) -> Path:
    """Find the image of a name that may lack its suffix; if there is none, return the most likely path."""
    if is_picture(path) or path.is_file():
        return path
    usual = [path.with_name(path.name + suffix) for suffix in FIRST]
    found = next((p for p in usual if p.is_file()), None)
    if found is None and path.parent.is_dir():
        begin = f"{path.name}."
        others = (p for p in path.parent.iterdir() if p.name.startswith(begin) and p.stem == path.name)
        found = next((p for p in sorted(others) if is_picture(p)), None)
    return found or usual[0]


def read_picture(path: Path, width: int, height: int) -> Tensor:
    """Read an image as float32 [H,W,3|4] in [0,1], area-averaged from a multiple of the requested size.

    Colours of transparent images are averaged with alpha weights, so that hidden colours do not leak.

    Raises:
        UsageError: the image is missing, damaged or too large, or has values of unknown range or another shape.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=_kinds()) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UsageError(f"{path} has {opened.width}x{opened.height} pixels, but the limit is {MAX_PIXELS}")
            stored = _values(opened, path)
    except FileNotFoundError as e:
        raise UsageError(f"{path} does not exist", "put the images at the paths given by their cameras") from e
    except (UsageError, MemoryError):
        raise
    except Exception as e:
        # Pillow's readers raise whatever the bytes of a damaged picture lead to.
        raise UsageError(f"{path} is not a readable image: {e or type(e).__name__}") from e
    rows, columns = stored.shape[:2]
    if (rows, columns) == (height, width):
        return torch.from_numpy(stored)
    factor = rows // max(height, 1)
    if factor < 1 or rows // factor != height or columns // factor != width:
        raise UsageError(f"{path} has {columns}x{rows} pixels, but its camera {width}x{height}")
    cut = torch.from_numpy(stored[: height * factor, : width * factor])
    blocks = cut.view(height, factor, width, factor, -1)
    if blocks.shape[-1] == 3:
        return blocks.mean(dim=(1, 3))
    alpha_mean = blocks[..., 3:].mean(dim=(1, 3))
    colour = (blocks[..., :3] * blocks[..., 3:]).mean(dim=(1, 3)) / alpha_mean.clamp(min=1e-8)
    return torch.cat([colour, alpha_mean], dim=-1)


def read_mask(path: Path, width: int, height: int) -> Tensor:
    """Read a mask, bool [H,W]: True keeps the pixel, if none of the averaged mask pixels is black.

    Raises:
        UsageError: as for :func:`read_picture`.
    """
    grey = read_picture(path, width, height)[..., :3].amax(-1)
    kept = grey > 0
    wide, _ = picture_size(path)
    factor = max(wide // max(width, 1), 1)
    if factor > 1:
        full = read_picture(path, width * factor, height * factor)[..., :3].amax(-1) > 0
        kept = full.view(height, factor, width, factor).all(dim=3).all(dim=1)
    return kept


def _values(opened: Any, path: Path) -> np.ndarray:
    """Convert an opened image to float32 [H,W,3|4] in [0,1], scaled by its bit depth."""
    if opened.mode in DEEP:
        grey = np.asarray(opened).astype(np.float32)
        colour = np.repeat(grey[..., None] / 65535, 3, axis=-1)
        clear = opened.info.get("transparency")
        if clear is None:
            return colour
        return np.concatenate([colour, (grey != clear)[..., None].astype(np.float32)], axis=-1)
    if opened.mode in ("I", "F"):
        raise UsageError(
            f"{path} has {'32-bit' if opened.mode == 'I' else 'floating-point'} values, "
            "whose white level no file records",
            "save it with 8 or 16 bits per channel",
        )
    alpha = opened.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in opened.info
    straight = opened.convert("LA" if opened.mode == "La" else "RGBA") if opened.mode in ("La", "RGBa") else opened
    values = np.array(straight.convert("RGBA" if alpha else "RGB"), dtype=np.float32)
    values /= 255
    return values


def picture_size(path: Path) -> tuple[int, int]:
    """Read (width, height) from the header of an image without decoding it.

    Raises:
        UsageError: the file is missing or not an image.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=_kinds()) as opened:
            return opened.size
    except MemoryError:
        raise
    except Exception as e:
        raise UsageError(
            f"{path} does not exist or is not an image; its size is needed because no file records it"
        ) from e
