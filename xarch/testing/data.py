"""Conformance of data providers: resuming, splits, and the declared tensors of a batch."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor

from xarch.config.validation import validated
from xarch.contracts.batch import Batch
from xarch.contracts.data import BatchStream, DataInfo, DataProvider, DataRequest, Split
from xarch.errors import UsageError
from xarch.planning.resolve import Resolved, providers, resolve_data
from xarch.registry.loader import get_registry

FINITE: tuple[Split, ...] = ("validation", "calibration", "heldout")
ALL: tuple[Split, ...] = ("train", *FINITE)
POSITIONS = (0, 1, 3)
"""Batches read before a stream is saved and reopened."""


class DataConformance:
    """Subclass it with ``ref = "SCHEME:REF"``, or override :meth:`make_ref` to write data into a folder.

    Class attributes:
        options, sample: options of the data and of a sample, as in a configuration.
        samples: batch size.
        splits: splits of the provider in addition to "train".
        most: maximum number of samples per split that are compared with the other splits.
        workers: whether it can prepare samples in other processes.
        seeded: whether a different seed yields different training batches.

    Override :meth:`context` for data that need a teacher or a processor.
    """

    ref: ClassVar[str] = ""
    options: ClassVar[Mapping[str, Any]] = {}
    sample: ClassVar[Mapping[str, Any]] = {}
    samples: ClassVar[int] = 3
    splits: ClassVar[tuple[Split, ...]] = FINITE
    most: ClassVar[int] = 300
    workers: ClassVar[bool] = True
    seeded: ClassVar[bool] = True

    def make_ref(self, folder: Path) -> str:
        """Return the reference of a small data set."""
        assert self.ref, f"{type(self).__name__} needs `ref` or `make_ref`"
        return self.ref

    def context(self, folder: Path) -> Mapping[str, Any]:
        """Return further fields of the request: ``teacher``, ``facts``, ``processors``."""
        return {}

    def _splits(self) -> list[Split]:
        return [split for split in ALL if split == "train" or split in self.splits]

    @pytest.fixture
    def opened(self, tmp_path: Path) -> tuple[DataProvider, DataRequest]:
        """Return the provider and a request to vary."""
        registry = get_registry()
        found: Resolved = resolve_data(registry, self.make_ref(tmp_path), self.options)
        request = DataRequest(
            found.ref, found.options, samples=self.samples, sample=self.sample, provider=providers(registry)
        )
        return found.adapter, replace(request, **self.context(tmp_path))

    def test_unknown_options_are_refused(self, opened: tuple[DataProvider, DataRequest]) -> None:
        with pytest.raises(UsageError):
            validated(type(opened[0]).Options, {**self.options, "no_such_option": 1}, "data.options")

    def test_unknown_keys_of_a_sample_are_refused(self, opened: tuple[DataProvider, DataRequest]) -> None:
        validated(opened[0].Sample, self.sample, "sample")
        with pytest.raises(UsageError):
            validated(opened[0].Sample, {**self.sample, "no_such_key": 1}, "sample")

    def test_description_is_stable_and_declares_tensors(self, opened: tuple[DataProvider, DataRequest]) -> None:
        provider, request = opened
        info = provider.describe(replace(request, teacher=None, processors={}))
        again = provider.describe(replace(request, teacher=None, processors={}))
        assert info == again
        assert info.digest
        assert info.unit
        assert info.tensors, "no tensor is declared, so the plan cannot check matches with the data"

    def test_batches_are_as_declared(self, opened: tuple[DataProvider, DataRequest]) -> None:
        provider, request = opened
        info = provider.describe(request)
        for split in self._splits():
            stream = provider.open(replace(request, split=split))
            try:
                batch = next(stream)
            finally:
                stream.close()
            _assert_declared(info, batch, split)
            assert len(batch) > 0
            assert split != "train" or len(batch) <= self.samples, f"{len(batch)} samples, wanted {self.samples}"
            assert batch.units > 0

    def test_a_resumed_stream_goes_on_with_the_next_batch(self, opened: tuple[DataProvider, DataRequest]) -> None:
        provider, request = opened
        for position in POSITIONS:
            first = provider.open(request)
            for _ in range(position):
                next(first)
            state = first.state_dict()
            json.dumps({k: v for k, v in state.items() if not isinstance(v, Tensor)})
            wanted = [next(first) for _ in range(3)]
            first.close()
            second = provider.open(request)
            second.load_state_dict(state)
            for number, batch in enumerate(wanted):
                told = f"resumed after {position} batches, batch {position + number} differs"
                _assert_same(batch, next(second), told)
            second.close()

    def test_a_stream_can_be_set_back(self, opened: tuple[DataProvider, DataRequest]) -> None:
        provider, request = opened
        stream = provider.open(request)
        next(stream)
        state = stream.state_dict()
        wanted = next(stream)
        stream.load_state_dict(state)
        _assert_same(wanted, next(stream), "after load_state_dict on a stream in use, the next batch differs")
        stream.close()

    def test_the_seed_decides(self, opened: tuple[DataProvider, DataRequest]) -> None:
        provider, request = opened
        one, two = _read(provider.open(request), 2), _read(provider.open(request), 2)
        for a, b in zip(one, two, strict=True):
            _assert_same(a, b, "two streams of one seed differ")
        if self.seeded:
            other = _read(provider.open(replace(request, seed=request.seed + 1)), 2)
            assert any(_keys(a) != _keys(b) for a, b in zip(one, other, strict=True)), "every seed reads the same"

    def test_finite_splits_end_and_repeat(self, opened: tuple[DataProvider, DataRequest]) -> None:
        provider, request = opened
        for split in self.splits:
            asked = replace(request, split=split)
            most = self.most // self.samples + 1
            one, two = _read(provider.open(asked), most), _read(provider.open(asked), most)
            assert one, f"{split} has no batch"
            assert [_keys(b) for b in one] == [_keys(b) for b in two], f"{split} has another order on the second pass"

    def test_splits_do_not_overlap(self, opened: tuple[DataProvider, DataRequest]) -> None:
        provider, request = opened
        found: dict[str, set[bytes]] = {}
        for split in self._splits():
            batches = _read(provider.open(replace(request, split=split)), self.most // self.samples)
            found[split] = {key for batch in batches for key in _keys(batch)}
        for a, b in itertools.combinations(found, 2):
            shared = found[a] & found[b]
            assert not shared, f"{len(shared)} of {len(found[a])} samples of {a} are in {b} too"

    def test_workers_change_nothing(self, opened: tuple[DataProvider, DataRequest]) -> None:
        if not self.workers:
            pytest.skip("it has no workers")
        provider, request = opened
        here, there = _read(provider.open(request), 3), _read(provider.open(replace(request, workers=2)), 3)
        for a, b in zip(here, there, strict=True):
            _assert_same(a, b, "with workers the batches differ")


def _read(stream: BatchStream, most: int) -> list[Batch]:
    try:
        return list(itertools.islice(stream, most))
    finally:
        stream.close()


def _assert_declared(info: DataInfo, batch: Batch, split: str) -> None:
    missing = sorted(set(info.tensors) - set(batch.tensors))
    assert not missing, f"{split}: {missing[0]!r} is declared and not in the batch"
    for key, tensor in info.tensors.items():
        value = batch[key]
        assert value.ndim == len(tensor.layout), f"{split}: {key}: {tuple(value.shape)} is not {tensor.layout}"
        assert not tensor.dtype or str(value.dtype) == f"torch.{tensor.dtype}", f"{split}: {key} is {value.dtype}"
        for letter, size in zip(tensor.layout[1:], value.shape[1:], strict=True):
            wanted = tensor.shape.get(letter, size)
            assert size == wanted, f"{split}: {key}: {letter} is {size}, declared {wanted}"


def _assert_same(a: Batch, b: Batch, told: str) -> None:
    assert a.tensors.keys() == b.tensors.keys(), told
    wrong = [key for key, value in a.tensors.items() if not torch.equal(value, b[key])]
    assert not wrong, f"{told} in {', '.join(wrong)}"
    assert a.units == b.units, f"{told} in its units"


def _keys(batch: Batch) -> list[bytes]:
    """Return a key for every sample: its contents without its numbers."""
    names = sorted(k for k in batch.tensors if k not in ("sample_id", "index") and "@" not in k)
    return [b"".join(batch[n][i].contiguous().numpy().tobytes() for n in names) for i in range(len(batch))]
