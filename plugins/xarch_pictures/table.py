"""A data set of pictures: what every format reads as."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from xarch import UsageError

TRAIN, VALIDATION, TEST = 0, 1, 2
"""Parts that the files themselves distinguish."""
PART_OF = {"train": TRAIN, "training": TRAIN, "val": VALIDATION, "valid": VALIDATION, "validation": VALIDATION}
PART_OF |= {"dev": VALIDATION, "test": TEST, "testing": TEST, "t10k": TEST}
MAX_PICTURES = 1 << 27
MAX_BYTES = 8 << 30
"""Largest data set that is held in memory."""


class Pictures(Protocol):
    """The pictures of a data set by index: uint8 [C,H,W], or the bytes of an image file."""

    def __getitem__(self, index: int) -> Tensor | bytes: ...


@dataclass(frozen=True, eq=False)
class Table:
    """A data set, of which only labels and headers were read.

    Attributes:
        title: for the plan.
        files: (name, path) of every file, for the digest.
        parts: [N], one of TRAIN, VALIDATION, TEST.
        labels: int64 [N]; None without classes.
        names: class names.
        channels: 1 or 3 for arrays; 3 for image files.
        size: (height, width) if all pictures have the same.
        load: returns the pictures; called once they are needed.
        arrays: whether ``load`` returns a uint8 tensor [N,C,H,W].
        warnings: what was left out.
    """

    title: str
    files: Sequence[tuple[str, Path]]
    parts: np.ndarray
    labels: np.ndarray | None
    names: tuple[str, ...]
    channels: int
    size: tuple[int, int] | None
    load: Callable[[], Any]
    arrays: bool = False
    warnings: tuple[str, ...] = ()

    def __len__(self) -> int:
        return len(self.parts)


def part_of(name: str) -> int | None:
    """Return the part that a file or folder name begins with ("train-00000", "test", "t10k-images"), or None."""
    head = name.lower().replace("_", "-").replace(".", "-").split("-")[0]
    return PART_OF.get(head)


def check_labels(labels: np.ndarray, classes: int, where: object) -> np.ndarray:
    """Return labels as int64.

    Raises:
        UsageError: they are no integers in 0..classes-1.
    """
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.dtype.kind not in "iu":
        raise UsageError(f"{where}: labels are {labels.dtype} {list(labels.shape)}, wanted one integer a picture")
    found = labels.astype(np.int64)
    if len(found) and not 0 <= found.min() <= found.max() < classes:
        raise UsageError(f"{where}: labels lie in {found.min()}..{found.max()}, wanted 0..{classes - 1}")
    return found


def check_pairs(pictures: int, labels: int, where: object) -> None:
    """Check that the pictures of one part or file have as many labels: one too few would move all that follow.

    Raises:
        UsageError: they do not.
    """
    if pictures != labels:
        raise UsageError(f"{where}: {pictures} pictures and {labels} labels")


def names_of(names: Sequence[str], labels: np.ndarray | None) -> tuple[str, ...]:
    """Return class names, by default the numbers up to the largest label."""
    if labels is None:
        return ()
    return tuple(names) or tuple(str(k) for k in range(int(labels.max(initial=0)) + 1))
