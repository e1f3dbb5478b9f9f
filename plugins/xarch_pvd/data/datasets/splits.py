"""Which views of an unsplit data set are held out."""

from __future__ import annotations

from xarch import UsageError

SPLITS = ("train", "val", "test")
HOLD = 8
"""Every 8th view is held out, the habit of LLFF (arXiv 1905.00889) that later work keeps."""


def held_out(count: int, split: str) -> list[int]:
    """Numbers of the views of a split; "val" and "test" are the same views.

    Raises:
        UsageError: no such split.
    """
    check_split(split)
    if count < 2:
        return list(range(count))
    return [v for v in range(count) if (v % HOLD == 0) != (split == "train")]


def check_split(split: str) -> None:
    """Raises UsageError unless ``split`` is a known one."""
    if split not in SPLITS:
        raise UsageError(f"split is {split!r}, wanted one of {', '.join(SPLITS)}")
