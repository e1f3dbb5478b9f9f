"""Reading one picture at the size its camera has."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError

MAX_PIXELS = 1 << 28
SUFFIXES = (".png", ".jpg", ".jpeg", ".JPG", ".JPEG", ".PNG")


def read_picture(path: Path, width: int, height: int) -> Tensor:
    """float32 [H,W,3|4] in [0,1], area-averaged from a stored size that is a multiple of the wanted one.

    Colours of transparent pictures are averaged weighted by alpha, so that no hidden colour leaks in.

    Raises:
        UsageError: missing, damaged, too large, or of another shape.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise UsageError(f"{path} has {opened.width}x{opened.height} pixels, at most {MAX_PIXELS} are read")
            alpha = opened.mode in ("RGBA", "LA", "PA") or "transparency" in opened.info
            stored = np.asarray(opened.convert("RGBA" if alpha else "RGB"), dtype=np.float32) / 255
    except FileNotFoundError as e:
        raise UsageError(f"{path} does not exist", "put the pictures where their cameras say they are") from e
    except (OSError, UnidentifiedImageError, ValueError, SyntaxError, Image.DecompressionBombError) as e:
        raise UsageError(f"{path} is no picture that can be read: {e}") from e
    rows, columns = stored.shape[:2]
    if (rows, columns) == (height, width):
        return torch.from_numpy(stored)
    factor = rows // max(height, 1)
    if factor < 1 or rows // factor != height or columns // factor != width:
        raise UsageError(f"{path} has {columns}x{rows} pixels, its camera {width}x{height}")
    cut = torch.from_numpy(stored[: height * factor, : width * factor])
    blocks = cut.view(height, factor, width, factor, -1)
    if blocks.shape[-1] == 3:
        return blocks.mean(dim=(1, 3))
    alpha_mean = blocks[..., 3:].mean(dim=(1, 3))
    colour = (blocks[..., :3] * blocks[..., 3:]).mean(dim=(1, 3)) / alpha_mean.clamp(min=1e-8)
    return torch.cat([colour, alpha_mean], dim=-1)


def picture_size(path: Path) -> tuple[int, int]:
    """(width, height) from the header of a picture, without decoding it.

    Raises:
        UsageError: missing or no picture.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as opened:
            return opened.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError) as e:
        raise UsageError(f"{path} does not exist or is no picture; its size is needed and no file names it") from e
