"""Reading the pickles that radiance-field programs write: tensors and plain containers, nothing else."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError

MAX_PICKLE_BYTES = 64 << 20
"""Largest pickle stream inside an archive; the bytes of tensors are not part of it."""
MAX_LEGACY_BYTES = 8 << 30
SHARING = 4
"""How often the same bytes may be named before a file counts as a bomb of expanded tensors."""


def read_pickle(path: Path, *, allow_pickle: bool) -> Mapping[str, Any]:
    """The top-level table of a ``.pth``, ``.th`` or ``.ckpt``.

    ``torch.load(weights_only=True)`` with numpy's plain arrays and scalars added to what it accepts: TensoRF stores
    its alpha mask as one. No unsafe way of reading is ever tried.

    Raises:
        UsageError: not allowed, damaged, holds more than tensors and plain values, or is no table.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    if not allow_pickle:
        raise UsageError(
            f"{path} is a pickle, and reading a pickle can run code",
            "add `--allow-pickle` (option allow_pickle) if you trust its author: it is then read by "
            "torch.load(weights_only=True), which builds tensors and plain values only",
        )
    archive = zipfile.is_zipfile(path)
    _check_size(path, archive)
    try:
        with torch.serialization.safe_globals(_numpy_globals()):
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=archive)
    except Exception as e:
        # A refused global, a cut archive or an index error inside a hostile stream all end here.
        lines = [line for line in str(e).splitlines() if "nsupported" in line or "GLOBAL" in line] or [str(e)]
        raise UsageError(
            f"{path} was refused: {' '.join(lines[0].split())[:300] or type(e).__name__}",
            "no unsafe way of reading it is tried; ask its author for a checkpoint of tensors",
        ) from e
    if not isinstance(loaded, Mapping):
        raise UsageError(f"{path} holds a {type(loaded).__name__}, expected a table of tensors")
    return loaded


def tensors_of(table: Any, path: Path, prefix: str = "") -> dict[str, Tensor]:
    """The tensors below ``prefix`` (cut off their names), in memory of their own; floats become float32.

    Raises:
        UsageError: they need more memory than the file can hold.
    """
    if not isinstance(table, Mapping):
        raise UsageError(f"{path}: expected a table of tensors, found a {type(table).__name__}")
    kept = {
        name[len(prefix) :]: value
        for name, value in table.items()
        if isinstance(name, str) and name.startswith(prefix) and isinstance(value, Tensor)
    }
    needed = sum(t.numel() * t.element_size() for t in kept.values())
    if needed > SHARING * path.stat().st_size:
        raise UsageError(f"{path}: its tensors would need {needed} bytes, the file has {path.stat().st_size}")
    for name, tensor in kept.items():
        if tensor.layout is not torch.strided or tensor.is_quantized or tensor.is_complex():
            raise UsageError(f"{path}: {name} is stored as {tensor.layout} {tensor.dtype}, expected a plain tensor")
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor).all()):
            raise UsageError(f"{path}: {name} holds values that are not finite")
    return {n: t.to(torch.float32, copy=True) if t.is_floating_point() else t.clone() for n, t in kept.items()}


def _check_size(path: Path, archive: bool) -> None:
    size = path.stat().st_size
    if not archive:
        if size > MAX_LEGACY_BYTES:
            raise UsageError(f"{path} has {size} bytes in one pickle stream, at most {MAX_LEGACY_BYTES} are read")
        return
    try:
        with zipfile.ZipFile(path) as opened:
            members = opened.infolist()
    except zipfile.BadZipFile as e:
        raise UsageError(f"{path} is damaged: {e}", "download or recreate the file") from e
    if sum(m.file_size for m in members) > size:
        raise UsageError(f"{path} unpacks to more than its own size", "torch does not write such files; do not use it")
    if sum(m.file_size for m in members if m.filename.endswith(".pkl")) > MAX_PICKLE_BYTES:
        raise UsageError(f"{path} holds a pickle of more than {MAX_PICKLE_BYTES >> 20} MiB besides its tensors")


def _numpy_globals() -> list[Any]:
    """Arrays and scalars of plain numbers, under the names numpy 1 and numpy 2 pickle them by."""
    from numpy._core.multiarray import _reconstruct, scalar

    kinds = ("bool", "u1", "u2", "u4", "u8", "i1", "i2", "i4", "i8", "f2", "f4", "f8")
    dtypes = sorted({type(np.dtype(kind)) for kind in kinds}, key=lambda t: t.__name__)
    named = [(f, f"numpy.{core}.multiarray.{n}") for core in ("core", "_core") for f, n in
             ((_reconstruct, "_reconstruct"), (scalar, "scalar"))]  # fmt: skip
    return [np.ndarray, np.dtype, *dtypes, *named]
