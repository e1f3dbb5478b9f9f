"""Which pictures belong to which split, and what training sees of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from xarch import UsageError, split_indices
from xarch_pictures.options import PictureOptions, Tail
from xarch_pictures.table import TEST, TRAIN, VALIDATION, Table

SPLITS = ("train", "validation", "calibration", "heldout")


@dataclass(frozen=True, eq=False)
class Selection:
    """Pictures of every split.

    Attributes:
        indices: split -> indices into the table.
        labels: labels of the table as training sees them; None without classes.
        labelled: bool [N]: whose label training may use; None for all.
    """

    indices: dict[str, np.ndarray]
    labels: np.ndarray | None
    labelled: np.ndarray | None

    def counts(self, classes: int) -> list[int]:
        """Return the number of labelled training pictures of each class."""
        train = self.indices["train"]
        if self.labels is None:
            return []
        kept = train if self.labelled is None else train[self.labelled[train]]
        return [int(n) for n in np.bincount(self.labels[kept], minlength=classes)]


def select(table: Table, options: PictureOptions) -> Selection:
    """Divide a table into splits.

    Parts of the files are respected: a test part (else a validation part) is held out whole. What they do not give is
    shares of one fixed permutation of the training part. ``tail``, ``limit``, ``labelled`` and ``noise`` choose among
    the training pictures that are left, so they never change the other splits.

    Raises:
        UsageError: a split or a class has too few pictures.
    """
    train, validation, test = (np.flatnonzero(table.parts == part) for part in (TRAIN, VALIDATION, TEST))
    if not len(train):
        raise UsageError(f"{table.title}: there are no training pictures")
    heldout = test if len(test) else validation
    chosen: dict[str, np.ndarray] = {"heldout": heldout} if len(heldout) else {}
    if len(test) and len(validation):
        chosen["validation"] = validation
    shares = {
        "validation": 0.0 if "validation" in chosen else options.validation,
        "calibration": options.calibration,
        "heldout": 0.0 if "heldout" in chosen else options.heldout,
    }
    for split in SPLITS:
        if split not in chosen:
            chosen[split] = train[split_indices(len(train), split, **shares)]  # type: ignore[arg-type]
    pool, labels = chosen["train"], table.labels
    rng = np.random.default_rng([options.subset, len(table)])
    if options.tail is not None and labels is not None:
        pool = pool[long_tail(labels[pool], len(table.names), options.tail, options.subset)]
    if options.limit is not None:
        pool = _balanced(pool, labels, options.limit, rng)
    labelled = None
    if options.labelled is not None and labels is not None:
        labelled = np.zeros(len(table), bool)
        labelled[_balanced(pool, labels, options.labelled, rng)] = True
    if options.noise and labels is not None:
        wrong = pool[rng.random(len(pool)) < options.noise]
        labels = labels.copy()
        labels[wrong] = rng.integers(len(table.names), size=len(wrong))
    chosen["train"] = np.sort(pool)
    return Selection(chosen, labels, labelled)


def _balanced(pool: np.ndarray, labels: np.ndarray | None, count: int, rng: np.random.Generator) -> np.ndarray:
    """Draw ``count`` pictures, as many of each class as there are."""
    if count > len(pool):
        raise UsageError(f"{count} training pictures are wanted, there are {len(pool)}", "lower limit or labelled")
    pool = rng.permutation(pool)
    if labels is None:
        return pool[:count]
    of = labels[pool]
    rank = np.zeros(len(pool), np.int64)
    for k in np.unique(of):
        rank[of == k] = np.arange((of == k).sum())
    return pool[np.argsort(rank, kind="stable")[:count]]


def tail_counts(classes: int, largest: int, tail: Tail) -> list[int]:
    """Return the pictures of each class, as Cui et al. (arXiv 1901.05555) count them: n_i = int(n_max μ^(i/(C−1))) with
    μ = 1/factor; ``step``: n_max for the first half, n_max μ for the other."""
    ratio = 1 / tail.factor
    if tail.shape == "step":
        return [largest if i < classes // 2 else int(largest * ratio) for i in range(classes)]
    return [int(largest * ratio ** (i / max(classes - 1, 1))) for i in range(classes)]


def long_tail(labels: np.ndarray, classes: int, tail: Tail, seed: int) -> np.ndarray:
    """Return positions in ``labels`` of a long-tailed subset.

    Raises:
        UsageError: a class has fewer pictures than its count.
    """
    have: Sequence[int] = np.bincount(labels, minlength=classes).tolist()
    largest = tail.largest or min(have)
    order = np.arange(classes) if tail.order is None else np.random.default_rng(tail.order).permutation(classes)
    rng = np.random.default_rng(seed)
    found = []
    for k, count in zip(order.tolist(), tail_counts(classes, largest, tail), strict=True):
        if count > have[k]:
            raise UsageError(
                f"class {k} has {have[k]} training pictures, the long tail wants {count}",
                "lower data.options.tail.largest, or keep fewer for validation and calibration",
            )
        found.append(rng.permutation(np.flatnonzero(labels == k))[:count])
    return np.concatenate(found)
