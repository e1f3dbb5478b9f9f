"""Teacher outputs on disk: exact, never stale, bounded."""

from __future__ import annotations

import contextlib
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from xarch.contracts.batch import CHANGED, Batch
from xarch.contracts.model import Sink, TapModel
from xarch.contracts.tap import Tap
from xarch.engine.teacher import TeacherFeed
from xarch.engine.teacher_cache import SharedTeacherCache, TeacherCache
from xarch.errors import PluginError


def _batch(seed: int) -> Batch:
    return Batch({"x": torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))}, 6)


def _store(cache: TeacherCache, batch: Batch, value: torch.Tensor) -> None:
    cache.push(batch, {"a"}, lambda *_: None, lambda sink: sink("a", value))


def _never(sink: Sink) -> None:
    raise AssertionError("the teacher was run")


def test_what_comes_back_is_bit_equal(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, "teacher", 10**6, print)
    value = torch.randn(5, 7)
    _store(cache, _batch(0), value)
    got: dict[str, torch.Tensor] = {}
    cache.push(_batch(0), {"a"}, got.__setitem__, _never)
    assert torch.equal(got["a"], value)
    assert (cache.hits, cache.writes) == (1, 1)


def test_weights_taps_and_data_are_in_the_key(tmp_path: Path) -> None:
    one, other = TeacherCache(tmp_path, "t1", 10**6, print), TeacherCache(tmp_path, "t2", 10**6, print)
    keys = {
        one.key(_batch(0), {"a"}),
        other.key(_batch(0), {"a"}),
        one.key(_batch(1), {"a"}),
        one.key(_batch(0), {"b"}),
    }
    assert len(keys) == 4


def test_the_limit_ends_writing_and_says_so(tmp_path: Path) -> None:
    said: list[str] = []
    cache = TeacherCache(tmp_path, "teacher", 100, said.append)
    _store(cache, _batch(0), torch.zeros(1000))
    assert not list(tmp_path.glob("*.safetensors"))
    assert "limit" in said[0]


def test_a_damaged_entry_is_computed_again(tmp_path: Path) -> None:
    said: list[str] = []
    cache = TeacherCache(tmp_path, "teacher", 10**6, said.append)
    _store(cache, _batch(0), torch.zeros(4))
    (entry,) = tmp_path.glob("*.safetensors")
    entry.write_bytes(b"broken")
    got: dict[str, torch.Tensor] = {}
    cache.push(_batch(0), {"a"}, got.__setitem__, lambda sink: sink("a", torch.ones(4)))
    assert torch.equal(got["a"], torch.ones(4))
    assert "damaged" in said[0]


def _numbered(*numbers: int, changed: bool = False) -> Batch:
    tensors = {"x": torch.zeros(len(numbers), 3), "sample_id": torch.tensor(numbers)}
    return Batch(tensors, len(numbers), {CHANGED: True} if changed else {})


def test_samples_are_shared_whatever_their_batches(tmp_path: Path) -> None:
    """vision 2.17: an entry is a sample's, so other batches and other runs find it."""
    cache = SharedTeacherCache(tmp_path, "teacher", 10**6, print)
    value = torch.randn(4, 7)
    _give(cache, _numbered(1, 2), value[:2])
    _give(cache, _numbered(3, 4), value[2:])
    again = SharedTeacherCache(tmp_path, "teacher", 10**6, print)
    got: dict[str, torch.Tensor] = {}
    again.push(_numbered(4, 1, 3), {"a"}, got.__setitem__, _never)
    assert torch.equal(got["a"], value[[3, 0, 2]])


def test_what_is_stored_is_used_beside_what_is_computed(tmp_path: Path) -> None:
    """A run that was killed after it had written half of a batch goes on with the very numbers it used."""
    cache = SharedTeacherCache(tmp_path, "teacher", 10**6, print)
    _give(cache, _numbered(1), torch.ones(1, 2))
    got = _give(cache, _numbered(1, 2), torch.full((2, 2), 5.0))
    assert got["a"].tolist() == [[1, 1], [5, 5]]


def test_batches_without_numbers_and_changed_ones_are_not_shared(tmp_path: Path) -> None:
    cache = SharedTeacherCache(tmp_path, "teacher", 10**6, print)
    _give(cache, _numbered(1, changed=True), torch.ones(1, 2))
    _give(cache, _batch(0), torch.ones(2, 2))
    assert not list(tmp_path.glob("*.safetensors"))
    got = _give(cache, _numbered(1), torch.zeros(1, 2))
    assert got["a"].tolist() == [[0, 0]]


def _give(cache: TeacherCache, batch: Batch, value: torch.Tensor) -> dict[str, torch.Tensor]:
    got: dict[str, torch.Tensor] = {}
    cache.push(batch, {"a"}, got.__setitem__, lambda sink: sink("a", value))
    return got


@dataclass
class _Scaled:
    """A structured value: numbers, and a factor that all samples share."""

    x: torch.Tensor
    factor: float


class _Structured(TapModel):
    family, facts = "none", None

    def __init__(self, packs: bool) -> None:
        self.module, self.packs, self.runs = torch.nn.Identity(), packs, 0

    def taps(self) -> dict[str, Tap]:
        return {"a": Tap("a", "feature", "scaled", {}, {"elements": "BC", "C": 3})}

    def run(self, batch: Batch, wanted: Collection[str], sink: Sink) -> None:
        self.runs += 1
        sink("a", _Scaled(batch["x"], 2.0))

    def packed(self, name: str, value: _Scaled) -> object:
        return value.x if self.packs else value

    def unpacked(self, name: str, stored: torch.Tensor) -> _Scaled:
        return _Scaled(stored, 2.0)


def test_structured_values_are_stored_by_their_numbers(tmp_path: Path) -> None:
    """encdec W21: factored logits were never cached, and a declared size of theirs crashed the cache."""
    teacher = _Structured(packs=True)
    assert teacher.taps()["a"].elements({}) == 3
    feed = TeacherFeed({"": teacher}, contextlib.nullcontext, {"": TeacherCache(tmp_path, "t", 10**6, print)})
    got: list[_Scaled] = []
    for _ in range(2):
        feed.run(_batch(0), {"a"}, lambda _, value: got.append(value))
    assert teacher.runs == 1
    assert torch.equal(got[0].x, got[1].x)
    assert torch.equal(got[1].x, _batch(0)["x"])
    assert got[1].factor == 2.0


def test_a_value_that_is_not_packed_is_its_teachers_fault(tmp_path: Path) -> None:
    caches = {"": TeacherCache(tmp_path, "t", 10**6, print)}
    feed = TeacherFeed({"": _Structured(packs=False)}, contextlib.nullcontext, caches)
    with pytest.raises(PluginError, match="packed\\(\\) returned a _Scaled, not a tensor"):
        feed.run(_batch(0), {"a"}, lambda *_: None)
