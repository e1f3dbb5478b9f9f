"""CIFAR-10 and CIFAR-100 as torchvision stores them: Python 2 pickles, read without running anything in them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import torch

from xarch import UsageError, open_regular
from xarch_pictures.table import TEST, TRAIN, Table, check_labels, check_pairs

BATCHES = {
    "cifar-10-batches-py": ({f"data_batch_{i}": TRAIN for i in range(1, 6)} | {"test_batch": TEST}, "batches.meta"),
    "cifar-100-python": ({"train": TRAIN, "test": TEST}, "meta"),
}
LABELS, NAMES = ("fine_labels", "labels"), ("fine_label_names", "label_names")
MAX_FILE = 512 << 20
SIDE = 32


class _Type:
    """Stands for numpy.dtype: only its name and byte order are kept."""

    def __init__(self, name: Any = "", *unused: Any) -> None:
        self.name, self.order = name, ""

    def __setstate__(self, state: Any) -> None:
        self.order = state[1]


class _Array:
    """Stands for numpy.ndarray: bytes with a shape, checked against each other before an array is made."""

    value: np.ndarray | None = None

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, data = state
        if not isinstance(dtype, _Type) or dtype.name not in ("u1", b"u1", "|u1") or not isinstance(data, bytes | str):
            raise pickle.UnpicklingError("an array of something else than bytes")
        raw = data.encode("latin1") if isinstance(data, str) else data
        if int(np.prod(shape, dtype=object)) != len(raw):
            raise pickle.UnpicklingError(f"an array of {shape} with {len(raw)} bytes")
        self.value = np.frombuffer(raw, np.uint8).reshape(shape, order="F" if fortran else "C")


def _encode(text: str, encoding: str = "latin1") -> bytes:
    if encoding not in ("latin1", b"latin1"):
        raise pickle.UnpicklingError(f"text in {encoding!r}")
    return text.encode("latin1")


SAFE: dict[tuple[str, str], Any] = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Type,
    ("_codecs", "encode"): _encode,
    **{(f"numpy.{core}.multiarray", "_reconstruct"): lambda *unused: _Array() for core in ("core", "_core")},
}


class _Plain(pickle.Unpickler):
    """Reads arrays of bytes and plain containers; any other name ends it."""

    def find_class(self, module: str, name: str) -> Any:
        try:
            return SAFE[module, name]
        except KeyError:
            raise pickle.UnpicklingError(f"it names {module}.{name}, which no such file needs") from None


def read_plain(path: Path) -> dict[str, Any]:
    """Return the table in a pickle of CIFAR.

    Raises:
        UsageError: it is damaged, too large, or holds anything but byte arrays, numbers, text and containers.
    """
    try:
        with open_regular(path) as file:
            if path.stat().st_size > MAX_FILE:
                raise UsageError(f"{path} has more than {MAX_FILE >> 20} MiB")
            found = _Plain(file, encoding="bytes").load()
    except FileNotFoundError as e:
        raise UsageError(f"{path} does not exist", "download the data set again") from e
    except (UsageError, MemoryError):
        raise
    except Exception as e:
        # A damaged pickle ends in whatever its bytes lead to.
        raise UsageError(f"{path} is not read: {e or type(e).__name__}", "download the data set again") from e
    if not isinstance(found, dict):
        raise UsageError(f"{path} holds a {type(found).__name__}, wanted a table")
    return {k.decode("latin1") if isinstance(k, bytes) else str(k): v for k, v in found.items()}


def read_cifar(root: Path, labels: bool) -> Table | None:
    """Read CIFAR-10 or CIFAR-100 from its folder or the one above; None if it is not there."""
    found = ((root / name, *parts) for name, parts in BATCHES.items())
    own = [(root, *parts) for parts in BATCHES.values() if (root / parts[1]).is_file()]
    folder, batches, meta = next(((f, b, m) for f, b, m in (*own, *found) if (f / m).is_file()), (None, {}, ""))
    if folder is None:
        return None
    images, given, parts = [], [], []
    for name, part in batches.items():
        stored = read_plain(folder / name)
        data = stored.get("data")
        if not isinstance(data, _Array) or data.value is None or data.value.shape[1:] != (3 * SIDE * SIDE,):
            raise UsageError(f"{folder / name} has no pictures of 3 by {SIDE} by {SIDE} bytes")
        images.append(data.value.reshape(-1, 3, SIDE, SIDE))
        parts.append(np.full(len(data.value), part, np.int8))
        if labels:
            given.append(_labels(next((stored[key] for key in LABELS if key in stored), None), folder / name))
            check_pairs(len(data.value), len(given[-1]), folder / name)
    names = _names(read_plain(folder / meta), folder / meta)
    x = torch.from_numpy(np.concatenate(images))
    y = np.concatenate(given) if labels else None
    return Table(
        title=f"{folder.name}, {len(x)} pictures of {len(names)} classes",
        files=[(name, folder / name) for name in (*batches, meta)],
        parts=np.concatenate(parts),
        labels=check_labels(y, len(names), folder) if y is not None else None,
        names=names if labels else (),
        channels=3,
        size=(SIDE, SIDE),
        load=lambda: x,
        arrays=True,
    )


def _names(told: dict[str, Any], where: Path) -> tuple[str, ...]:
    found: Any = next((told[key] for key in NAMES if key in told), None)
    if not isinstance(found, list) or not all(isinstance(name, bytes) for name in found):
        raise UsageError(f"{where} has no names of classes", "download the data set again")
    return tuple(name.decode("utf-8", "replace") for name in found)


def _labels(given: Any, where: Path) -> np.ndarray:
    if not isinstance(given, list) or not all(isinstance(y, int) for y in given):
        raise UsageError(f"{where} has no labels", "download the data set again")
    return np.array(given, dtype=np.int64)
