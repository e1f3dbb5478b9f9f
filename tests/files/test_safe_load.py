"""Weights files: round trip, headers that lie, pickles that try to run."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from xarch import UsageError, load_weights, save_weights, weights_header
from xarch.files.unpickle import convert

TENSORS = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.ones(4, dtype=torch.bfloat16), "c": torch.zeros(0, 5)}


def plain(folder: Path, name: str = "w.safetensors") -> Path:
    save_file(TENSORS, folder / name, {"format": "pt"})
    return folder / name


def with_header(folder: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    file = folder / "w.safetensors"
    file.write_bytes(struct.pack("<Q", len(raw) if length is None else length) + raw + data)
    return file


def entry(start: int, stop: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": [(stop - start) // 4] if shape is None else shape, "data_offsets": [start, stop]}


def test_round_trip(tmp_path: Path) -> None:
    save_weights(TENSORS, tmp_path / "deep" / "w.safetensors", {"made_by": "a test"})
    loaded = load_weights(tmp_path / "deep" / "w.safetensors")
    assert {k: (v.dtype, v.tolist()) for k, v in loaded.items()} == {
        k: (v.dtype, v.tolist()) for k, v in TENSORS.items()
    }
    header = weights_header(tmp_path / "deep" / "w.safetensors")
    assert header.metadata == {"format": "pt", "made_by": "a test"}
    assert (header.tensors["a"].shape, header.tensors["b"].dtype, header.data_bytes) == ((2, 3), "BF16", 32)
    assert [f.name for f in (tmp_path / "deep").iterdir()] == ["w.safetensors"]
    (tmp_path / "other").touch()
    assert (tmp_path / "deep" / "w.safetensors").stat().st_mode == (tmp_path / "other").stat().st_mode


def test_shared_and_strided_tensors_are_stored_whole(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"whole": base, "same": base, "row": base[1], "column": base[:, 2], "turned": base.T}
    save_weights(tensors, tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert all(torch.equal(loaded[name], tensors[name]) for name in tensors)


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_weights(TENSORS, tmp_path / "w.safetensors")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("xarch.files.safe_load.fsync_path", full)
    with pytest.raises(UsageError, match="No space left"):
        save_weights({"a": torch.zeros(1)}, tmp_path / "w.safetensors")
    assert [f.name for f in tmp_path.iterdir()] == ["w.safetensors"]
    assert load_weights(tmp_path / "w.safetensors")["a"].shape == (2, 3)


@pytest.mark.parametrize("keep", [0, 1, 7, 8, 9, 40, -1])
def test_a_truncated_file_is_refused(keep: int, tmp_path: Path) -> None:
    file = plain(tmp_path)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(UsageError, match=r"not a sound safetensors file|is empty"):
        load_weights(file)


@pytest.mark.parametrize(
    ("header", "data", "message"),
    [
        ({"a": entry(0, 8), "b": entry(4, 12)}, bytes(12), "'b' starts at byte 4 and overlaps"),
        ({"a": entry(0, 8), "b": entry(0, 8)}, bytes(8), "overlaps"),
        ({"a": entry(0, 4), "b": entry(8, 12)}, bytes(12), "leaves a gap"),
        ({"a": entry(4, 8)}, bytes(8), "leaves a gap"),
        ({"a": entry(0, 8)}, bytes(4), "need 8 bytes, the file holds 4"),
        ({"a": entry(0, 8)}, bytes(12), "need 8 bytes, the file holds 12"),
        ({"a": entry(0, 8, [2, 2**40])}, bytes(8), "needs 8796093022208 bytes, its range has 8"),
        ({"a": entry(0, 2**50, [2**48])}, bytes(8), "the file holds 8"),
        ({"a": entry(8, 0, [2])}, bytes(8), "its range has -8"),
        ({"a": entry(0, 8, [-2])}, bytes(8), r"shape \[-2\]"),
        ({"a": entry(0, 8, [True, 2])}, bytes(8), "shape"),
        ({"a": entry(0, 8, [2.0])}, bytes(8), "shape"),
        ({"a": entry(0, 8, [1] * 99)}, bytes(8), "shape"),
        ({"a": entry(0, 8, dtype="F33")}, bytes(8), "dtype 'F33'"),
        ({"a": {"dtype": "F32"}}, b"", "not described by"),
        ({"a": 3}, b"", "not described by"),
        ({"__metadata__": {"x": 3}}, b"", "not text"),
        (b'{"a": 1, "a": 2}', b"", "a name appears twice"),
        (b"[]", b"", "not a JSON object"),
        (b"{" * 20000, b"", "not valid"),
        (b'{"a"', b"", "not valid"),
        (b"\xff\xfe{}", b"", "not valid"),
    ],
)
def test_a_header_that_lies_is_refused(header: Any, data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=message):
        load_weights(with_header(tmp_path, header, data))


@pytest.mark.parametrize("length", [0, 1, 10**9, 2**63, 2**64 - 1])
def test_a_header_length_that_lies_is_refused(length: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="its header claims"):
        load_weights(with_header(tmp_path, {"a": entry(0, 4)}, bytes(4), length))


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_random_damage_is_either_harmless_or_a_usage_error(tmp_path: Path, data: st.DataObject) -> None:
    raw = bytearray(plain(tmp_path, "good.safetensors").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        raw[data.draw(st.integers(0, len(raw) - 1))] = data.draw(st.integers(0, 255))
    file = tmp_path / "bad.safetensors"
    file.write_bytes(bytes(raw))
    try:
        loaded = load_weights(file)
    except UsageError:
        return
    assert sum(t.numel() * t.element_size() for t in loaded.values()) <= len(raw)


class Runs:
    """Pickled, it would run a command when it is read."""

    def __init__(self, path: Path, how: Callable[..., Any] = os.system) -> None:
        self.path, self.how = path, how

    def __reduce__(self) -> tuple[Any, ...]:
        if self.how is os.system:
            return os.system, (f"touch {self.path}",)
        return self.how, (f"open({str(self.path)!r}, 'w')",)


def saved_pickle(folder: Path, value: Any, name: str = "pytorch_model.bin", **options: Any) -> Path:
    torch.save(value, folder / name, **options)
    return folder / name


@pytest.mark.parametrize("name", ["pytorch_model.bin", "w.pt", "w.pth", "w.ckpt", "disguised.safetensors"])
def test_a_pickle_is_refused_whatever_it_is_called(name: str, tmp_path: Path) -> None:
    file = saved_pickle(tmp_path, TENSORS, name)
    with pytest.raises(UsageError, match=r"is a pickle.*\n.*--allow-pickle"):
        load_weights(file)


def test_safetensors_under_a_pickles_name_need_no_permission(tmp_path: Path) -> None:
    assert set(load_weights(plain(tmp_path, "pytorch_model.bin"))) == set(TENSORS)


def tied_tensors() -> dict[str, torch.Tensor]:
    tied = nn.Parameter(torch.ones(3, 2))
    return {**TENSORS, "embed": tied, "head": tied, "view": torch.arange(8.0)[2:5]}


def test_a_pickle_of_tensors_becomes_safetensors(tmp_path: Path, home: Path) -> None:
    tensors = tied_tensors()
    file = saved_pickle(tmp_path, tensors)
    loaded = load_weights(file, allow_pickle=True)
    assert {k: v.tolist() for k, v in loaded.items()} == {k: v.tolist() for k, v in tensors.items()}
    (copy,) = (home / "cache" / "unpickled").iterdir()
    before = copy.stat().st_mtime_ns
    load_weights(file, allow_pickle=True)
    assert copy.stat().st_mtime_ns == before
    with pytest.raises(UsageError, match="is a pickle"):
        load_weights(file)


def test_an_old_pickle_of_a_whole_checkpoint_too(tmp_path: Path) -> None:
    """In this process, as its own process does it; so are the payloads below but one."""
    value = {"epoch": 3, "state_dict": tied_tensors()}
    convert(saved_pickle(tmp_path, value, _use_new_zipfile_serialization=False), tmp_path / "w.safetensors")
    loaded = load_weights(tmp_path / "w.safetensors")
    assert {k: v.tolist() for k, v in loaded.items()} == {k: v.tolist() for k, v in tied_tensors().items()}


@pytest.mark.slow
def test_a_payload_does_not_run_in_the_process_of_its_own(tmp_path: Path, home: Path) -> None:
    file = saved_pickle(tmp_path, {"a": torch.ones(2), "b": Runs(tmp_path / "ran")})
    with pytest.raises(UsageError, match=r"was refused: weights_only=True blocked it.*\n.*no unsafe way"):
        load_weights(file, allow_pickle=True)
    assert not (tmp_path / "ran").exists()
    assert not list((home / "cache" / "unpickled").glob("*"))


@pytest.mark.parametrize(("form", "how"), [("zip", os.system), ("legacy", eval), ("bare", exec)])
def test_a_payload_does_not_run(form: str, how: Any, tmp_path: Path) -> None:
    payload = {"a": torch.ones(2), "b": Runs(tmp_path / "ran", how)}
    if form == "bare":
        file = tmp_path / "w.bin"
        file.write_bytes(pickle.dumps({"b": Runs(tmp_path / "ran", how)}))
    else:
        file = saved_pickle(tmp_path, payload, _use_new_zipfile_serialization=form == "zip")
    with pytest.raises(UsageError, match="weights_only=True blocked it"):
        convert(file, tmp_path / "w.safetensors")
    assert not (tmp_path / "ran").exists()
    assert not (tmp_path / "w.safetensors").exists()


def test_the_payload_would_run_without_the_guard(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Runs(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.slow
def test_a_file_beside_the_pickle_is_not_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "torch.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')", encoding="utf-8")
    file = saved_pickle(tmp_path, TENSORS)
    monkeypatch.chdir(tmp_path)
    load_weights(file, allow_pickle=True)
    assert not (tmp_path / "ran").exists()


def test_things_that_are_not_tensors_are_refused(tmp_path: Path) -> None:
    for value, message in (({"a": torch.ones(1), "b": "text"}, "not tensors: b"), ([torch.ones(1)], "holds a list")):
        file = saved_pickle(tmp_path, value)
        with pytest.raises(UsageError, match=message):
            convert(file, tmp_path / "w.safetensors")
    assert not (tmp_path / "w.safetensors").exists()


def test_a_tensor_larger_than_its_file_is_refused(tmp_path: Path) -> None:
    file = saved_pickle(tmp_path, {"a": torch.ones(1).expand(1 << 40)})
    assert file.stat().st_size < 10_000
    with pytest.raises(UsageError, match="would need 4398046511104 bytes"):
        convert(file, tmp_path / "w.safetensors")


def test_an_archive_that_unpacks_to_more_than_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "w.bin"
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("w/data.pkl", bytes(10_000_000))
    with pytest.raises(UsageError, match="unpacks to more than its own size"):
        load_weights(file, allow_pickle=True)


@pytest.mark.slow
def test_a_cut_pickle_is_refused(tmp_path: Path) -> None:
    file = saved_pickle(tmp_path, TENSORS)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(UsageError, match=r"was refused|damaged"):
        load_weights(file, allow_pickle=True)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not exist"):
        load_weights(tmp_path / "no.safetensors")
    with pytest.raises(UsageError, match="cannot read"):
        weights_header(tmp_path / "no.safetensors")


def test_headers_are_read_without_torch(tmp_path: Path) -> None:
    code = "import sys; from xarch import weights_header; weights_header(sys.argv[1]); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code, str(plain(tmp_path))], capture_output=True, text=True)
    assert done.stdout.strip() == "False", done.stderr
