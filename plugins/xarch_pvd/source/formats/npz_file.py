"""Reader of ``.npz`` archives that checks headers before unpacking, and a writer."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import IO

import numpy as np

from xarch import UsageError

MAX_BYTES = 8 << 30
"""Limit on unpacked bytes of the wanted arrays; fits a dense 512^3 grid with 27 half-precision colour values."""


def read_npz(path: Path, wanted: Collection[str], *, limit: int = MAX_BYTES) -> dict[str, np.ndarray]:
    """Read those arrays of ``wanted`` that the archive contains.

    Raises:
        UsageError: the file is not an archive, is damaged or too large, holds pickled objects, or has a header that
            contradicts its data.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    arrays: dict[str, np.ndarray] = {}
    total = 0
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                name = member.filename.removesuffix(".npy")
                if name not in wanted or not member.filename.endswith(".npy"):
                    continue
                if name in arrays:
                    raise UsageError(f"{path} names {name!r} twice")
                with archive.open(member) as stream:
                    shape, dtype, header_bytes = _header(stream)
                if dtype.hasobject or dtype.kind not in "biufUS":
                    raise UsageError(f"{path}: {name} holds {dtype}, expected plain numbers")
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if size + header_bytes != member.file_size:
                    raise UsageError(
                        f"{path}: {name} declares {size} bytes, but {member.file_size - header_bytes} are stored"
                    )
                total += size
                if total > limit:
                    raise UsageError(f"{path} unpacks to more than {limit} bytes")
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except UsageError:
        raise
    except Exception as e:
        # Truncated archives, damaged streams and invalid headers all raise different exceptions.
        raise UsageError(f"{path} cannot be read: {e}", "download or recreate the file") from e
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{path}: {name} has non-finite values")
    return arrays


def names(path: Path) -> frozenset[str]:
    """Return the names of the arrays in an archive without reading them; empty if it is not an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            return frozenset(n.removesuffix(".npy") for n in archive.namelist() if n.endswith(".npy"))
    except (OSError, zipfile.BadZipFile):
        return frozenset()


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], np.dtype, int]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"array format {version}")
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read(stream)
    return shape, dtype, stream.tell()


def write_npz(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write a compressed archive atomically.

    Raises:
        UsageError: the disk is full or the folder cannot be written.
    """
    partial = path.with_name(f".{path.name}.tmp-{os.getpid()}.npz")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(partial, allow_pickle=False, **arrays)
        os.replace(partial, path)
    except OSError as e:
        raise UsageError(f"cannot write {path}: {e.strerror or e}", "free disk space or choose another folder") from e
    finally:
        partial.unlink(missing_ok=True)
