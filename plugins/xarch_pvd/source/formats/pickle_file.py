"""Reader of pickles written by radiance-field programs; accepts only tensors and plain containers."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError, check_stored_archive

MAX_PICKLE_BYTES = 64 << 20
"""Largest pickle stream inside an archive, excluding the bytes of tensors."""
MAX_LEGACY_BYTES = 8 << 30
SHARING = 4
"""How often the same bytes may be referenced before a file is rejected as a decompression bomb."""


def read_pickle(path: Path, *, allow_pickle: bool) -> Mapping[str, Any]:
    """Read the top-level dict of a ``.pth``, ``.th`` or ``.ckpt``.

    Uses ``torch.load(weights_only=True)``, extended to numpy's plain arrays and scalars: TensoRF stores its alpha mask
    as an array. There is no unsafe fallback.

    Raises:
        UsageError: reading is not allowed, or the file is damaged, is not a dict, or holds more than tensors and plain
            values.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    if not allow_pickle:
        raise UsageError(
            f"{path} is a pickle, and loading a pickle can execute code",
            "add `--allow-pickle` (option allow_pickle) if you trust its author: it is then loaded with "
            "torch.load(weights_only=True), which creates only tensors and plain values",
        )
    archive = zipfile.is_zipfile(path)
    _check_size(path, archive)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as e:
        # A rejected global, a truncated archive and an index error in a hostile stream all end up here.
        lines = [line for line in str(e).splitlines() if "nsupported" in line or "GLOBAL" in line] or [str(e)]
        raise UsageError(
            f"{path} was refused: {' '.join(lines[0].split())[:300] or type(e).__name__}",
            "unsafe loading is not supported; ask its author for a checkpoint that holds only tensors",
        ) from e
    if not isinstance(loaded, Mapping):
        raise UsageError(f"{path} holds a {type(loaded).__name__}, expected a dict of tensors")
    return loaded


def tensors_of(table: Any, path: Path, prefix: str = "") -> dict[str, Tensor]:
    """Copy the tensors under ``prefix``, which is removed from their names; floats become float32.

    Raises:
        UsageError: they need more memory than the file can account for.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{path}: expected a dict of tensors, found a {type(table).__name__}")
    kept = {
        name[len(prefix) :]: value
        for name, value in table.items()
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, Tensor)
    }
    needed = sum(t.numel() * t.element_size() for t in kept.values())
    if needed > SHARING * path.stat().st_size:
        raise UsageError(f"{path}: its tensors would need {needed} bytes, but the file has {path.stat().st_size}")
    for name, tensor in kept.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise UsageError(f"{path}: {name} is stored as {tensor.layout} {tensor.dtype}, expected a plain tensor")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"{path}: {name} has non-finite values")
    return {n: t.to(torch.float32, copy=True) if t.is_floating_point() else t.clone() for n, t in kept.items()}


def _check_size(path: Path, archive: bool) -> None:
    size = path.stat().st_size
    if not archive and size > MAX_LEGACY_BYTES:
        raise UsageError(f"{path} has {size} bytes in one pickle stream, but the limit is {MAX_LEGACY_BYTES}")
    check_stored_archive(path, pickle_bytes=MAX_PICKLE_BYTES)


def _numpy_globals() -> list[Any]:
    """Return the globals of plain arrays and scalars, under the names that numpy 1 and numpy 2 pickle."""
    from numpy._core.multiarray import _reconstruct, scalar

    kinds = ("bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
    dtypes = sorted({type(np.dtype(kind)) for kind in kinds}, key=lambda t: t.__name__)
    named = [(f, f"numpy.{core}.multiarray.{n}") for core in ("core", "_core") for f, n in
             ((_reconstruct, "_reconstruct"), (scalar, "scalar"))]  # fmt: skip
    return [np.ndarray, np.dtype, *dtypes, *named]
