"""IndexedStream: what a batch holds depends on seed and position alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from xarch import DataRequest, IndexedData, IndexedStream, SkipSample, UsageError, split_indices


class Numbers(IndexedData):
    """Sample i is about i; every seventh is unusable if ``holes``."""

    augments = True

    def __init__(self, total: int = 17, holes: bool = False) -> None:
        self.total, self.holes = total, holes

    def __len__(self) -> int:
        return self.total

    def __getitem__(self, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
        if self.holes and index % 7 == 5:
            raise SkipSample("hole")
        return {"x": index + 0.5 * torch.rand(2, generator=generator)}


def stream(data: IndexedData | None = None, *, split: Any = "train", samples: int = 4, **given: Any) -> IndexedStream:
    indices = given.pop("indices", None)
    request = DataRequest("numbers", None, split=split, samples=samples, seed=3, **given)
    return IndexedStream(data or Numbers(holes=True), request, indices=indices)


def take(found: IndexedStream, batches: int) -> list[dict[str, Tensor]]:
    return [next(found).tensors for _ in range(batches)]


def assert_equal(one: list[dict[str, Tensor]], two: list[dict[str, Tensor]]) -> None:
    assert len(one) == len(two)
    for a, b in zip(one, two, strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_restored_position_gives_the_same_batches(workers: int) -> None:
    whole = take(stream(), 12)
    first = stream(workers=workers)
    assert_equal(take(first, 5), whole[:5])
    again = stream(workers=workers)
    again.load_state_dict(first.state_dict())
    assert_equal(take(again, 7), whole[5:])
    assert again.counters()["read"] == 12 * 4
    first.close()
    again.close()


def test_an_epoch_reads_every_sample_once_in_an_order_of_its_own() -> None:
    found = stream(Numbers(12))
    seen = torch.cat([b["x"][:, 0] for b in take(found, 6)]).int().tolist()
    assert sorted(seen[:12]) == sorted(seen[12:]) == list(range(12))
    assert seen[:12] != seen[12:]
    identities = torch.cat([b["sample_id"] for b in take(stream(Numbers(12)), 6)])
    assert len(identities.unique()) == 24, "an augmented sample is another one in the next epoch"
    again = torch.cat([b["sample_id"] for b in take(stream(Numbers(12)), 6)])
    assert torch.equal(again, identities)
    request = DataRequest("numbers", None, samples=4, seed=4)
    other = torch.cat([b["sample_id"] for b in take(IndexedStream(Numbers(12), request), 6)])
    assert not set(other.tolist()) & set(identities.tolist()), "stale teacher outputs would be used"


def test_fixed_splits_are_read_once_and_whole() -> None:
    batches = list(stream(Numbers(10), split="heldout"))
    assert [len(b) for b in batches] == [4, 4, 2]
    assert torch.cat([b["x"][:, 0] for b in batches]).int().tolist() == list(range(10))


def test_unusable_samples_are_counted_and_too_many_are_an_error() -> None:
    found = stream()
    take(found, 9)
    assert found.counters() == {"read": 36, "skipped: hole": 2 * 2}

    class Broken(Numbers):
        def __getitem__(self, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
            raise SkipSample("truncated file")

    with pytest.raises(UsageError, match=r"are unusable \(4 truncated file\)"):
        next(stream(Broken()))


def test_bad_samples_at_the_beginning_do_not_condemn_a_good_data_set() -> None:
    class Late(Numbers):
        def __getitem__(self, index: int, generator: torch.Generator) -> Mapping[str, Tensor]:
            if index < 30:
                raise SkipSample("early")
            return super().__getitem__(index, generator)

    found = stream(Late(1000), split="heldout", samples=100)
    assert sum(len(batch) for batch in found) == 970
    assert found.counters() == {"read": 970, "skipped: early": 30}


def test_reading_draws_nothing_from_the_random_numbers_of_the_run() -> None:
    before = torch.get_rng_state()
    take(stream(), 3)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("total", [4, 10, 997])
def test_splits_cover_everything_and_never_overlap(total: int) -> None:
    shares = {"validation": 0.1, "calibration": 0.05, "heldout": 0.2}
    parts = [split_indices(total, s, **shares) for s in ("train", "validation", "calibration", "heldout")]
    assert sorted(i for part in parts for i in part.tolist()) == list(range(total))
    assert all(len(part) for part in parts)
    with pytest.raises(UsageError, match="none are left"):
        split_indices(3, "train", **shares)
