"""Selection of held-out views in data sets without splits."""

from __future__ import annotations

import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

from xarch import UsageError

SPLITS = ("train", "val", "test")
HOLD = 8
"""Every 8th view is held out, the convention of LLFF (arXiv 1905.00889) and later work."""


def held_out(count: int, split: str) -> list[int]:
    """Return the indices of the views of a split; "val" and "test" are the same views.

    Raises:
        UsageError: the split is unknown.
    """
    check_split(split)
    if count < 2:
        # A single view cannot serve both training and evaluation.
        return list(range(count)) if split == "train" else []
    return [v for v in range(count) if (v % HOLD == 0) != (split == "train")]


def check_split(split: str) -> None:
    """Raise UsageError unless ``split`` is known."""
    if split not in SPLITS:
        raise UsageError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")


def listed(names: Sequence[str], document: Mapping[str, Any], split: str, where: str) -> list[int] | None:
    """Return the indices of the frames that a transforms.json lists for a split; None if it has no lists.

    Names are compared as paths. Any list applies to all splits: a split without one uses the other of "val" and "test",
    else the unlisted frames. It never uses frames of another list.

    Raises:
        UsageError: a list names a missing frame, or the split would be empty.
    """
    lists = {s: document[f"{s}_filenames"] for s in SPLITS if document.get(f"{s}_filenames") is not None}
    if not lists:
        return None
    numbers = {posixpath.normpath(name): number for number, name in enumerate(names)}
    found: dict[str, list[int]] = {}
    for known, files in lists.items():
        if not isinstance(files, list):
            raise UsageError(f"{where}: {known}_filenames is not a list")
        paths = [posixpath.normpath(str(file)) for file in files]
        lost = [path for path in paths if path not in numbers]
        if lost:
            raise UsageError(f"{where}: {known}_filenames names {', '.join(lost[:3])}, which no frame has")
        found[known] = [numbers[path] for path in dict.fromkeys(paths)]
    other = {"val": "test", "test": "val"}.get(split, "")
    named = {number for chosen in found.values() for number in chosen}
    chosen = found.get(split) or found.get(other) or [n for n in range(len(names)) if n not in named]
    both = set(chosen) & set(found.get("train", [])) if split != "train" else set()
    if not chosen or both:
        what = f"{len(both)} of them are training frames" if both else "none is left for it"
        raise UsageError(
            f"{where} has the split lists {', '.join(lists)}; for {split}: {what}", f"add {split}_filenames"
        )
    return chosen
