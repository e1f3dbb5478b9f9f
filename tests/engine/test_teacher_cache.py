"""Teacher outputs on disk: exact, never stale, bounded."""

from __future__ import annotations

from pathlib import Path

import torch

from xarch.contracts.batch import Batch
from xarch.engine.teacher import TeacherCache


def _batch(seed: int) -> Batch:
    return Batch({"x": torch.randn(2, 3, generator=torch.Generator().manual_seed(seed))}, 6)


def _store(cache: TeacherCache, batch: Batch, value: torch.Tensor) -> str:
    key = cache.key(batch, {"a"})
    tee, kept = cache.recorder(lambda *_: None)
    tee("a", value)
    cache.write(key, kept)
    return key


def test_what_comes_back_is_bit_equal(tmp_path: Path) -> None:
    cache = TeacherCache(tmp_path, "teacher", 10**6, print)
    value = torch.randn(5, 7)
    key = _store(cache, _batch(0), value)
    got: dict[str, torch.Tensor] = {}
    assert cache.play(key, {"a"}, torch.device("cpu"), got.__setitem__)
    assert torch.equal(got["a"], value)


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
    key = _store(cache, _batch(0), torch.zeros(4))
    (tmp_path / f"{key}.safetensors").write_bytes(b"broken")
    assert not cache.play(key, {"a"}, torch.device("cpu"), lambda *_: None)
    assert "damaged" in said[0]
