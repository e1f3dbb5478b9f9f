"""A resumable stream over data whose samples can be read one by one: the author writes ``__getitem__``."""

from __future__ import annotations

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

PREFETCH = 2
"""Batches that a worker prepares ahead."""


class SkipSample(Exception):
    """Raised by :meth:`IndexedData.__getitem__` for a sample that cannot be used; the argument says why, in a word or
    two that are counted ("truncated file")."""


class IndexedData(ABC):
    """Samples by number.

    Attributes:
        augments: whether ``__getitem__`` draws from its generator; then a sample differs from epoch to epoch, and so
            does its ``sample_id``.
    """

    augments: bool = False

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        """One sample without the batch dimension; ``generator`` belongs to this sample of this epoch.

        Raises:
            SkipSample: the sample cannot be used.
        """


class IndexedStream(BatchStream):
    """Batches of an :class:`IndexedData`, with ``sample_id`` [B] int64 in every batch.

    Training data are endless: every epoch is another permutation, and a batch may reach from one epoch into the next.
    Other splits are read once, in order; their last batch may be smaller. What a batch holds depends on seed and
    position alone, not on the number of workers.

    Args:
        data: the samples.
        request: split, batch size, seed and workers are taken from it.
        indices: which samples belong to the split; all by default. See :func:`split_indices`.
        units: budget units of a sample.
        most_skipped: share of unusable samples above which reading stops with an error.

    Raises:
        UsageError: there is no sample, or too many cannot be used.
    """

    def __init__(
        self,
        data: IndexedData,
        request: DataRequest,
        *,
        indices: Sequence[int] | None = None,
        units: int = 1,
        most_skipped: float = 0.2,
    ) -> None:
        self.data, self.request, self.units, self.most_skipped = data, request, units, most_skipped
        self.indices = np.arange(len(data)) if indices is None else np.asarray(indices, dtype=np.int64)
        if not len(self.indices):
            raise UsageError(f"{request.ref}: the split {request.split!r} has no sample", "choose other shares")
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
        epoch, index = self._orders.place(number)
        return epoch * len(self.data) + index if self.data.augments else index

    def _next_draw(self) -> tuple[int, Any] | None:
        """(number of the draw, sample or why it is skipped), or None at the end."""
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
        return iter(
            DataLoader(
                reader,
                sampler=draws,
                batch_size=None,
                num_workers=workers,
                prefetch_factor=PREFETCH if workers else None,
                collate_fn=_as_it_is,
                # A loader draws its workers' seed; from the run's own random numbers that would change the training.
                generator=torch.Generator().manual_seed(self.request.seed),
            )
        )

    def _skip(self, why: str) -> None:
        self._skipped[why] += 1
        seen, lost = self._used + self._skipped.total(), self._skipped.total()
        # A handful of bad samples at the very beginning says little about the share in the whole.
        if lost > self.most_skipped * seen and lost >= min(20, max(1, self.most_skipped * len(self.indices))):
            reasons = ", ".join(f"{count} {why}" for why, count in self._skipped.most_common(3))
            raise UsageError(
                f"{self.request.ref}: {lost} of {seen} samples cannot be used ({reasons}); "
                f"at most {self.most_skipped:.0%} may be skipped",
                "look at the data, or name a part of them that is sound",
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
    """Numbers of draws in pieces of about a batch, from a position on."""

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
    """Reads the samples of a piece of draws, in a worker or here."""

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
    """The order of the samples in every epoch; the last one made is kept."""

    def __init__(self, indices: np.ndarray, seed: int, shuffled: bool) -> None:
        self.indices, self.seed, self.shuffled = indices, seed, shuffled
        self._epoch, self._order = -1, indices

    def place(self, number: int) -> tuple[int, int]:
        """(epoch, index of the sample) of draw ``number``."""
        epoch, at = divmod(number, len(self.indices))
        if self.shuffled and epoch != self._epoch:
            self._epoch, self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(self.indices)
        return epoch, int(self._order[at])


def _mixed(*numbers: int) -> int:
    """One seed of several numbers."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


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
    """Numbers of the samples of a split: shares of one fixed permutation, so that splits never overlap.

    Every split with a share above zero has at least one sample if ``total`` allows it.

    Raises:
        UsageError: the shares leave nothing to train on.
    """
    order = np.random.default_rng([seed, total]).permutation(total)
    ends: dict[str, tuple[int, int]] = {}
    start = 0
    for name, share in (("heldout", heldout), ("validation", validation), ("calibration", calibration)):
        count = 0 if share <= 0 else max(1, round(share * total))
        ends[name] = (start, start + count)
        start += count
    if start >= total:
        raise UsageError(f"{start} of {total} samples are set aside, none is left to train on", "choose smaller shares")
    ends["train"] = (start, total)
    first, last = ends[split]
    return np.sort(order[first:last])
