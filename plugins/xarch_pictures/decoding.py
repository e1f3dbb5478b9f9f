"""Image files as pictures of 8 bits per channel."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from xarch import SkipSample

KINDS = ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
"""Pillow's readers that are used; all are decoders of pixels, none runs another program."""
SUFFIXES = frozenset(
    {".png", ".jpg", ".jpeg", ".jpe", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pnm"}
)
MAX_PIXELS = 64_000_000
"""Eight thousand by eight thousand; decoding needs some ten bytes a pixel."""
MAX_FILE = 64 << 20
DEEP = ("I;16", "I;16L", "I;16B", "I;16N", "I;16S")


def decode(data: bytes, channels: int) -> Any:
    """Return a picture upright, of mode "L" or "RGB"; transparent parts are white.

    Raises:
        SkipSample: it is damaged, too large, of another kind, or has values of unknown range.
    """
    from PIL import Image, ImageOps

    if len(data) > MAX_FILE:
        raise SkipSample("file too large")
    try:
        with Image.open(io.BytesIO(data), formats=KINDS) as opened:
            if opened.width * opened.height > MAX_PIXELS:
                raise SkipSample(f"more than {MAX_PIXELS // 10**6} million pixels")
            if opened.mode in ("F", "I"):
                raise SkipSample("values of unknown range")
            opened.load()
            return _plain(ImageOps.exif_transpose(opened), "L" if channels == 1 else "RGB")
    except (SkipSample, MemoryError):
        raise
    except Exception as e:
        # Pillow's readers raise whatever the bytes of a damaged file lead to.
        raise SkipSample("damaged or not an image") from e


def size_of(data: bytes) -> tuple[int, int] | None:
    """Return (height, width) from the header of an image file; None if it is damaged."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=KINDS) as opened:
            return opened.height, opened.width
    except MemoryError:
        raise
    except Exception:  # see decode
        return None


def _plain(picture: Any, mode: str) -> Any:
    from PIL import Image

    if picture.mode in DEEP:
        # Pillow would clip at 255.
        picture = Image.fromarray((np.asarray(picture).astype(np.uint32) / 257).round().astype(np.uint8))
    if picture.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in picture.info:
        straight = picture.convert("LA") if picture.mode == "La" else picture
        clear = straight.convert("RGBA")
        white = Image.new("RGBA", clear.size, "white")
        picture = Image.alpha_composite(white, clear)
    return picture if picture.mode == mode else picture.convert("RGB").convert(mode)
