"""Groups of classes by their number of training images: head, mid and tail."""

from __future__ import annotations

from collections.abc import Sequence

from xarch import UsageError

FEW_CLASSES = 20
"""Up to this many classes are divided 3 : 4 : 3, more by their counts."""
MANY, FEW = 100, 20
"""A class with more images than ``MANY`` belongs to the head, one with fewer than ``FEW`` to the tail (Liu et al.,
arXiv 1904.05160)."""


def class_groups(counts: Sequence[int], cuts: Sequence[int] = ()) -> dict[str, list[int]]:
    """Return group -> its classes, in descending order of images; none if all classes have the same number.

    Args:
        counts: training images of each class.
        cuts: two positions in that order at which mid and tail begin; by default 3 : 4 : 3 of few classes, and by the
            usual counts of many.

    Raises:
        UsageError: the cuts are not two ascending positions.
    """
    order = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    if cuts and (len(cuts) != 2 or not 0 < cuts[0] < cuts[1] < len(counts)):
        raise UsageError(f"groups {list(cuts)}: expected two positions between 0 and {len(counts)}, e.g. [3, 7]")
    if not cuts:
        if len(set(counts)) < 2:
            return {}
        if len(counts) <= FEW_CLASSES:
            cuts = round(0.3 * len(counts)), round(0.7 * len(counts))
        else:
            cuts = sum(n > MANY for n in counts), sum(n >= FEW for n in counts)
    start, end = cuts
    parts = {"head": order[:start], "mid": order[start:end], "tail": order[end:]}
    return {name: classes for name, classes in parts.items() if classes}
