"""Pictures as arrays: IDX files (MNIST and its kin), NPZ files, and the digits of scikit-learn."""

from __future__ import annotations

import gzip
import math
import re
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from xarch import UsageError, open_regular, too_dense, zip_members
from xarch_pictures.table import MAX_BYTES, TRAIN, Table, check_labels, check_pairs, names_of, part_of

IDX = re.compile(r"(?P<part>.+?)[-_]images[-_.]idx3[-_]ubyte(\.gz)?\Z")
NPZ = (("{0}_images", "{0}_labels"), ("x_{0}", "y_{0}"), ("images", "labels"), ("x", "y"), ("data", "target"))
"""Pairs of array names that NPZ files use; {0} is a part."""


def read_idx(root: Path, labels: bool) -> Table | None:
    """Find pairs of IDX files in a folder; None if there are none.

    Raises:
        UsageError: a file is damaged, or has no labels.
    """
    parts, counts, sizes, given, files = [], [], set(), [], []
    for path in sorted(p for p in root.iterdir() if IDX.match(p.name)):
        found = IDX.match(path.name)
        part = part_of(found["part"]) if found else None
        (count, *size), _ = _idx(path, header_only=True)
        if len(size) != 2:
            raise UsageError(
                f"{path} has the shape {[count, *size]}, pictures have [N, H, W]", "is it a file of labels?"
            )
        files.append((path.name, path))
        parts.append(np.full(count, TRAIN if part is None else part, dtype=np.int8))
        counts.append(count)
        sizes.add(tuple(size))
        if labels:
            beside = path.with_name(path.name.replace("images", "labels").replace("idx3", "idx1"))
            files.append((beside.name, beside))
            given.append(check_labels(_idx(beside)[1], 256, beside))
            check_pairs(count, len(given[-1]), f"{path} with {beside.name}")
    if not parts:
        return None
    if len(sizes) > 1:
        raise UsageError(f"{root}: its IDX files have pictures of different sizes: {sorted(sizes)}")
    images = [path for name, path in files if IDX.match(name)]
    known = np.concatenate(given) if labels else None
    return _table(root.name, files, np.concatenate(parts), known, (1, *sizes.pop()), lambda: _stacked(images))


def _stacked(paths: list[Path]) -> Tensor:
    return torch.from_numpy(np.concatenate([_idx(path)[1] for path in paths])).unsqueeze(1)


def _idx(path: Path, header_only: bool = False) -> tuple[tuple[int, ...], np.ndarray]:
    """Return the shape and the bytes of an IDX file, which is checked against its header before it is read."""
    try:
        with open_regular(path) as raw, gzip.GzipFile(fileobj=raw) if path.suffix == ".gz" else raw as file:
            head = file.read(4)
            if len(head) < 4 or head[:3] != b"\0\0\x08" or not 1 <= head[3] <= 3:
                raise UsageError(f"{path} is not an IDX file of bytes")
            shape = tuple(int(n) for n in np.frombuffer(file.read(4 * head[3]), ">u4"))
            wanted, packed = math.prod(shape), path.stat().st_size
            if len(shape) != head[3] or wanted > MAX_BYTES or too_dense(packed, wanted):
                raise UsageError(f"{path}: its header gives {list(shape)}, out of proportion to its {packed} bytes")
            if header_only:
                return shape, np.empty(0, np.uint8)
            data = file.read(wanted)
    except FileNotFoundError as e:
        raise UsageError(f"{path} does not exist", "IDX files come in pairs of images and labels") from e
    except (OSError, EOFError, zlib.error) as e:
        raise UsageError(f"{path} is damaged: {e}", "download it again") from e
    if len(data) != wanted:
        raise UsageError(f"{path} has {len(data)} bytes of data, its header gives {list(shape)}", "download it again")
    return shape, np.frombuffer(data, np.uint8).reshape(shape)


def read_npz(path: Path, labels: bool) -> Table:
    """Read an NPZ file: ``x_train``/``y_train``, ``train_images``/``train_labels``, ``images``/``labels``, ``x``/``y``.

    Raises:
        UsageError: it is damaged, or has no such arrays.
    """
    stored = _npz(path)
    found: list[tuple[int, np.ndarray, np.ndarray | None]] = []
    for part in ("train", "val", "test"):
        for images, target in NPZ:
            x, y = images.format(part), target.format(part)
            if x in stored and ("{0}" in images or not found):
                if labels and y not in stored:
                    raise UsageError(f"{path} has {x!r} without {y!r}", "or read no labels: data.options.labels=false")
                found.append((part_of(part) or TRAIN, stored[x], stored.get(y) if labels else None))
    if not found:
        raise UsageError(
            f"{path} has the arrays {', '.join(sorted(stored)) or 'none'}",
            "wanted images and labels, x_train and y_train, or train_images and train_labels",
        )
    seen = [_pictures(images, path) for _, images, _ in found]
    if len(shapes := {tuple(x.shape[1:]) for x in seen}) > 1:
        raise UsageError(f"{path}: its parts have pictures of different shapes: {sorted(map(list, shapes))}")
    pictures = torch.cat(seen)
    given = [check_labels(y, 1 << 20, path) for _, _, y in found if y is not None]
    for shown, told in zip(seen, given, strict=labels):
        check_pairs(len(shown), len(told), path)
    parts = np.concatenate([np.full(len(images), part, np.int8) for part, images, _ in found])
    known = np.concatenate(given) if labels else None
    return _table(path.stem, [(path.name, path)], parts, known, tuple(pictures.shape[1:]), lambda: pictures)


def _npz(path: Path) -> dict[str, np.ndarray]:
    try:
        with open_regular(path) as file, zipfile.ZipFile(file) as archive:
            members = zip_members(archive, path)
            unpacked = sum(m.file_size for m in members)
            if unpacked > MAX_BYTES or too_dense(path.stat().st_size, unpacked):
                raise UsageError(f"{path} unpacks to {unpacked} bytes, out of proportion to the file")
            for member in members:
                _check_header(archive, member, path)
            file.seek(0)
            with np.load(file, allow_pickle=False) as arrays:
                return {name: arrays[name] for name in arrays.files}
    except (OSError, ValueError, zipfile.BadZipFile, zlib.error, EOFError) as e:
        raise UsageError(f"{path} is damaged or holds objects: {e}", "save plain arrays with numpy.savez") from e


def _check_header(archive: zipfile.ZipFile, member: zipfile.ZipInfo, path: Path) -> None:
    """Check that an array is not larger than its bytes; numpy allocates it before it reads them."""
    with archive.open(member) as stored:
        version = np.lib.format.read_magic(stored)
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(stored)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise UsageError(f"{path}: {member.filename} claims {list(shape)} {dtype} in {member.file_size} bytes")


def _pictures(x: np.ndarray, where: Path) -> Tensor:
    """Return uint8 [N,C,H,W] of arrays [N,H,W], [N,H,W,C] or [N,C,H,W], of bytes or of numbers in 0..1."""
    if x.dtype.kind == "f" and x.size and x.min() >= 0 and x.max() <= 1:
        x = (x * 255).round().astype(np.uint8)
    if x.dtype != np.uint8 or x.ndim not in (3, 4) or not x.size:
        raise UsageError(
            f"{where}: pictures are {x.dtype} {list(x.shape)}", "wanted bytes, or numbers in 0..1, [N,H,W,C]"
        )
    if x.ndim == 3:
        x = x[:, None]
    elif x.shape[3] in (1, 3):
        x = x.transpose(0, 3, 1, 2)
    elif x.shape[1] not in (1, 3):
        raise UsageError(f"{where}: pictures are {list(x.shape)}, wanted 1 or 3 channels")
    return torch.from_numpy(np.ascontiguousarray(x))


def read_digits(labels: bool) -> Table:
    """The 1797 digits of scikit-learn, 8 by 8 pixels.

    Raises:
        UsageError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as e:
        raise UsageError("images:digits are in scikit-learn, which is not installed", "pip install scikit-learn") from e
    found = load_digits()
    x = torch.from_numpy((found.images * (255 / 16)).round().astype(np.uint8)).unsqueeze(1)
    y = found.target.astype(np.int64) if labels else None
    return _table("digits", [], np.zeros(len(x), np.int8), y, (1, 8, 8), lambda: x)


def _table(
    title: str,
    files: list[tuple[str, Path]],
    parts: np.ndarray,
    labels: np.ndarray | None,
    shape: tuple[int, ...],
    load: Callable[[], Tensor],
) -> Table:
    names = names_of((), labels)
    told = f"{title}, {len(parts)} pictures" + (f" of {len(names)} classes" if names else "")
    return Table(told, files, parts, labels, names, shape[0], (shape[1], shape[2]), load, arrays=True)
