"""Reader of ``.npz`` archives that checks headers before unpacking, and a writer."""

from __future__ import annotations

import io
import math
import os
import zipfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from xarch import UsageError, read_bounded, too_dense, zip_members

MAX_BYTES = 48 << 30
"""Limit on the memory that reading takes at its worst; fits a dense 512^3 grid with 27 half-precision colour values."""
MAX_NPY_BYTES = 64 << 20
COPIES = 2
"""Copies in float32 that a reader makes beside the arrays as stored."""


@dataclass(frozen=True, slots=True)
class ArrayHeader:
    """Shape and type of an array of an archive, before its values are read."""

    shape: tuple[int, ...]
    dtype: np.dtype

    @property
    def elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of the values as stored."""
        return self.elements * self.dtype.itemsize

    def numeric(self) -> bool:
        """Whether the values are real numbers or truth values."""
        return self.dtype.kind in "biuf"


def read_npz(
    path: Path, wanted: Collection[str], check: Callable[[Mapping[str, ArrayHeader]], None], *, limit: int = MAX_BYTES
) -> dict[str, np.ndarray]:
    """Read those arrays of ``wanted`` that the archive contains.

    Args:
        check: receives the headers of all of them before any value is read; raises UsageError if one is missing or
            does not fit.
        limit: bytes of memory, copies included.

    Raises:
        UsageError: the file is not an archive, is damaged or too large, holds pickled objects, or has a header that
            contradicts its data.
    """
    if not path.is_file():
        raise UsageError(f"{path} does not exist")
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            members = _wanted(archive, path, wanted)
            headers = {name: _checked(archive, member, path, name) for name, member in members.items()}
            packed, unpacked = (sum(getattr(m, k) for m in members.values()) for k in ("compress_size", "file_size"))
            if too_dense(packed, unpacked):
                raise UsageError(
                    f"{path} unpacks from {packed} to {unpacked} bytes", "no real field compresses so well"
                )
            need = sum(h.bytes + COPIES * 4 * h.elements for h in headers.values())
            if need > limit:
                raise UsageError(f"{path} needs {need} bytes of memory to be read; the limit is {limit}")
            check(headers)
            for name, member in members.items():
                with archive.open(member) as stream:
                    arrays[name] = np.lib.format.read_array(stream, allow_pickle=False)
    except (UsageError, MemoryError):
        raise
    except Exception as e:
        # Truncated archives, damaged streams and invalid headers all raise different exceptions.
        raise UsageError(f"{path} cannot be read: {e}", "download or recreate the file") from e
    for name, array in arrays.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise UsageError(f"{path}: {name} has non-finite values")
    return arrays


def read_npy(path: Path) -> np.ndarray:
    """Read one array of at most :data:`MAX_NPY_BYTES`.

    Raises:
        UsageError: the file is missing, larger, no array of plain numbers, or its header contradicts its data.
    """
    content = read_bounded(path, MAX_NPY_BYTES)
    try:
        stream = io.BytesIO(content)
        shape, dtype, header_bytes = _header(stream)
        if (
            dtype.hasobject
            or dtype.kind not in "biuf"
            or math.prod(shape) * dtype.itemsize + header_bytes != len(content)
        ):
            raise ValueError(f"{shape} values of {dtype} are not the {len(content) - header_bytes} bytes stored")
        stream.seek(0)
        return np.lib.format.read_array(stream, allow_pickle=False)
    except Exception as e:
        # Headers are Python literals, which fail in many ways.
        raise UsageError(f"{path} cannot be read: {e}", "download or recreate the file") from e


def names(path: Path) -> frozenset[str]:
    """Return the names of the arrays in an archive without reading them; empty if it is not an archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            named = [m.filename for m in zip_members(archive, path)]
            return frozenset(n.removesuffix(".npy") for n in named if n.endswith(".npy"))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError, UsageError):
        return frozenset()


def _wanted(archive: zipfile.ZipFile, path: Path, wanted: Collection[str]) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    for member in zip_members(archive, path):
        name = member.filename.removesuffix(".npy")
        if name not in wanted or not member.filename.endswith(".npy"):
            continue
        if name in found:
            raise UsageError(f"{path} names {name!r} twice")
        found[name] = member
    return found


def _checked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path, name: str) -> ArrayHeader:
    with archive.open(member) as stream:
        shape, dtype, header_bytes = _header(stream)
    if dtype.hasobject or dtype.kind not in "biufUS" or dtype.names is not None:
        raise UsageError(f"{path}: {name} holds {dtype}, expected plain numbers")
    header = ArrayHeader(shape, dtype)
    if any(not isinstance(n, int) or n < 0 for n in shape) or header.bytes + header_bytes != member.file_size:
        raise UsageError(
            f"{path}: {name} declares {header.bytes} bytes, but {member.file_size - header_bytes} are stored"
        )
    return header


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
