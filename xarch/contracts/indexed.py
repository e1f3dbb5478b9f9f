"""A resumable stream over map-style data: the author implements ``__getitem__``."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections import Counter, deque
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from xarch.contracts.batch import Batch
from xarch.contracts.data import BatchStream, DataRequest, Split
from xarch.errors import UsageError

FAR_TOO_MANY = 1000
"""Unusable samples beyond the tolerated share after which reading stops before the end of a pass."""
PREFETCH = 2
"""Number of batches that a worker prefetches."""


class SkipSample(Exception):
    """Raised by :meth:`IndexedData.__getitem__` for an unusable sample. The argument is a short reason that is counted
    ("truncated file")."""


class IndexedData(ABC):
    """Map-style data: samples by index.

    Attributes:
        augments: whether ``__getitem__`` uses its generator; samples and their ``sample_id`` then differ between
            epochs and seeds.
    """

    augments: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """Return one sample without the batch dimension; ``generator`` is specific to this sample and epoch.

        Raises:
            SkipSample: the sample cannot be used.
        """


class IndexedStream(BatchStream):
    """Batches of an :class:`IndexedData`, with ``sample_id`` [B] int64 in every batch.

    Training data are endless: every epoch is a new permutation, and a batch may span two epochs. Other splits are read
    once, in order; their last batch may be smaller. The content of a batch depends only on seed and position, not on
    the number of workers.

    Args:
        data: the samples.
        request: supplies split, batch size, seed and workers.
        indices: indices of the samples in the split; all by default. See :func:`split_indices`.
        units: budget units per sample.
        most_skipped: share of unusable samples above which reading stops with an error.

    Raises:
        UsageError: there are no samples, or too many are unusable.
    """

    def __init__(
        self,
        data: IndexedData,
        request: DataRequest,
        *,
        indices: Sequence[int] | np.ndarray | None = None,
        units: int = 1,
        most_skipped: float = 0.2,
    ) -> None:
        self.data, self.request, self.units, self.most_skipped = data, request, units, most_skipped
        self.indices = np.arange(len(data)) if indices is None else np.asarray(indices, dtype=np.int64)
        if not len(self.indices):
            raise UsageError(f"{request.ref}: the split {request.split!r} has no samples", "change the split shares")
        self.endless = request.split == "train"
        self._orders = _Orders(self.indices, request.seed, self.endless)
        self._drawn = 0
        self._skipped: Counter[str] = Counter()
        self._used = 0
        self._ready: deque[tuple[int, Any]] = deque()
        self._pieces: Iterator[list[tuple[int, Any]]] | None = None

    def __next__(self) -> Batch:
        samples: list[tuple[int, Mapping[str, Tensor]]] = []
        while len(samples) < self.request.samples:
            drawn = self._next_draw()
            if drawn is None:
                break
            number, sample = drawn
            self._drawn = number + 1
            if isinstance(sample, SkipSample):
                self._skip(str(sample) or "unusable")
                continue
            self._used += 1
            samples.append((self._id(number), sample))
        if not samples:
            self.close()
            raise StopIteration
        keys = samples[0][1].keys()
        tensors = {key: torch.stack([sample[key] for _, sample in samples]) for key in keys}
        tensors["sample_id"] = torch.tensor([identity for identity, _ in samples], dtype=torch.int64)
        return Batch(tensors, len(samples) * self.units)

    def _id(self, number: int) -> int:
        """Return the sample's index, or the seed of its augmentation, which differs between runs."""
        epoch, index = self._orders.place(number)
        return _mixed(self._orders.seed, epoch, index) if self.data.augments else index

    def _next_draw(self) -> tuple[int, Any] | None:
        """Return (draw number, sample or reason for skipping it), or None at the end."""
        if not self._ready:
            if self._pieces is None:
                self._pieces = self._open()
            try:
                self._ready.extend(next(self._pieces))
            except StopIteration:
                return None
        return self._ready.popleft()

    def _open(self) -> Iterator[list[tuple[int, Any]]]:
        draws = _Draws(self.indices, self.request, self._drawn, self.endless)
        reader = _Reader(self.data, _Orders(self.indices, self.request.seed, self.endless))
        workers = self.request.workers
        if not workers:
            return (reader[draw] for draw in draws)
        return iter(
            DataLoader(
                reader,
                sampler=draws,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=PREFETCH,
                collate_fn=_as_it_is,
                # A DataLoader draws its workers' seed; drawing it from the global generator would change the training.
                generator=torch.Generator().manual_seed(self.request.seed),
            )
        )

    def _skip(self, why: str) -> None:
        self._skipped[why] += 1
        seen, lost = self._used + self._skipped.total(), self._skipped.total()
        # The share is that of a whole pass, so that bad samples at its beginning do not condemn a good data set; far
        # beyond it, the rest is not worth reading.
        if lost > self.most_skipped * max(seen, len(self.indices)) or lost - self.most_skipped * seen > FAR_TOO_MANY:
            reasons = ", ".join(f"{count} {why}" for why, count in self._skipped.most_common(3))
            raise UsageError(
                f"{self.request.ref}: {lost} of {seen} samples are unusable ({reasons}); "
                f"at most {self.most_skipped:.0%} may be skipped",
                "check the data, or select a valid part of them",
            )

    def state_dict(self) -> dict[str, Any]:
        return {"drawn": self._drawn, "used": self._used, "skipped": dict(self._skipped)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.close()
        self._drawn, self._used = int(state["drawn"]), int(state["used"])
        self._skipped = Counter(state["skipped"])

    def counters(self) -> dict[str, int]:
        return {"read": self._used, **{f"skipped: {why}": count for why, count in sorted(self._skipped.items())}}

    def close(self) -> None:
        self._pieces = None
        self._ready.clear()


class _Draws(Sampler[range]):
    """Sampler of draw numbers in chunks of about one batch, starting at a position."""

    def __init__(self, indices: np.ndarray, request: DataRequest, start: int, endless: bool) -> None:
        self.total, self.start, self.endless = len(indices), start, endless
        self.piece = request.samples if request.workers else 1

    def __iter__(self) -> Iterator[range]:
        at = self.start
        while self.endless or at < self.total:
            end = at + self.piece if self.endless else min(at + self.piece, self.total)
            yield range(at, end)
            at = end


class _Reader(Dataset[list[tuple[int, Any]]]):
    """Reads the samples of a chunk of draws, in a worker or in this process."""

    def __init__(self, data: IndexedData, orders: _Orders) -> None:
        self.data, self.orders = data, orders

    def __getitem__(self, draws: Any) -> list[tuple[int, Any]]:
        return [(number, self._read(number)) for number in draws]

    def _read(self, number: int) -> Any:
        epoch, index = self.orders.place(number)
        generator = torch.Generator().manual_seed(_mixed(self.orders.seed, epoch, index))
        try:
            return self.data.__getitem__(index, generator)
        except SkipSample as skipped:
            return skipped


class _Orders:
    """Sample order of each epoch; the latest is cached."""

    def __init__(self, indices: np.ndarray, seed: int, shuffled: bool) -> None:
        self.indices, self.seed, self.shuffled = indices, seed, shuffled
        self._epoch, self._order = -1, indices

    def place(self, number: int) -> tuple[int, int]:
        """Return (epoch, sample index) of draw ``number``."""
        epoch, at = divmod(number, len(self.indices))
        if self.shuffled and epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.indices)
        return epoch, int(self._order[at])


def _mixed(*numbers: int) -> int:
    """Combine several numbers into one seed."""
    return int.from_bytes(hashlib.blake2b(repr(numbers).encode(), digest_size=8).digest(), "big") >> 1


def _as_it_is(piece: Any) -> Any:
    return piece


def split_indices(
    total: int,
    split: Split,
    *,
    validation: float = 0.1,
    calibration: float = 0.0,
    heldout: float = 0.1,
    seed: int = 0,
) -> np.ndarray:
    """Return the sample indices of a split: shares of one fixed permutation, so that splits never overlap.

    Every split with a positive share has at least one sample if ``total`` allows it.

    Raises:
        UsageError: the shares leave no training samples.
    """
    order = np.random.default_rng([seed, total]).permutation(total)
    ends: dict[str, tuple[int, int]] = {}
    start = 0
    for name, share in (("heldout", heldout), ("validation", validation), ("calibration", calibration)):
        count = 0 if share <= 0 else max(1, round(share * total))
        ends[name] = (start, start + count)
        start += count
    if start >= total:
        raise UsageError(
            f"{start} of {total} samples are reserved for other splits; none are left for training",
            "choose smaller shares",
        )
    ends["train"] = (start, total)
    first, last = ends[split]
    return np.sort(order[first:last])
