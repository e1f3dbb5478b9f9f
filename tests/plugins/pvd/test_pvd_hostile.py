"""Files made to do harm, or cut, are refused with a message and nothing else happens."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.plugins.pvd.foreign_fields import save_torch_ngp
from xarch import UsageError
from xarch_pvd.source.formats import read_field, write_voxels_npz
from xarch_pvd.source.formats.npz_file import read_npz
from xarch_pvd.source.formats.record import FieldFile

BOX = (-1.0, -1.0, -1.0, 1.0, 1.0, 1.0)


class Run:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.marker),)


def test_a_pickle_needs_permission(tmp_path: Path) -> None:
    save_torch_ngp(tmp_path / "a.pth", "hash")
    with pytest.raises(UsageError, match="allow-pickle"):
        read_field(tmp_path / "a.pth")


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_pickle_never_runs(tmp_path: Path, zipped: bool) -> None:
    marker, file = tmp_path / "made", tmp_path / "a.pth"
    evil = {"model": {"aabb_train": torch.zeros(6)}, "stats": Run(marker)}
    if zipped:
        torch.save(evil, file)
    else:
        file.write_bytes(pickle.dumps(evil))
    with pytest.raises(UsageError, match="refused"):
        read_field(file, allow_pickle=True)
    assert not marker.exists()


def test_objects_in_numpy_arrays_never_run(tmp_path: Path) -> None:
    marker = tmp_path / "made"
    array = np.array([Run(marker)], dtype=object)
    torch.save({"kwargs": {}, "state_dict": {}, "alphaMask.mask": array}, tmp_path / "a.th")
    with pytest.raises(UsageError):
        read_field(tmp_path / "a.th", allow_pickle=True)
    np.savez(tmp_path / "a.npz", sigma=array, aabb=np.array(BOX))
    with pytest.raises(UsageError, match="object"):
        read_field(tmp_path / "a.npz")
    assert not marker.exists()


def test_tensors_without_bytes_are_refused(tmp_path: Path) -> None:
    state = save_torch_ngp(tmp_path / "a.pth", "hash")
    state["encoder.embeddings"] = torch.zeros(1, 1).expand(1 << 30, 2)
    torch.save({"model": state}, tmp_path / "b.pth")
    with pytest.raises(UsageError, match="would need"):
        read_field(tmp_path / "b.pth", allow_pickle=True)


def test_values_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    state = save_torch_ngp(tmp_path / "a.pth", "hash")
    state["sigma_net.0.weight"][0, 0] = float("nan")
    torch.save({"model": state}, tmp_path / "b.pth")
    with pytest.raises(UsageError, match="non-finite"):
        read_field(tmp_path / "b.pth", allow_pickle=True)


def test_a_header_that_promises_more_than_there_is(tmp_path: Path) -> None:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "<f4", "fortran_order": False, "shape": (1 << 40,)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("sigma.npy", stream.getvalue() + b"\0" * 64)
    with pytest.raises(UsageError, match="are stored"):
        read_field(tmp_path / "a.npz")


def test_archives_are_bounded(tmp_path: Path) -> None:
    np.savez_compressed(tmp_path / "a.npz", sigma=np.zeros(1 << 20, dtype=np.float32))
    with pytest.raises(UsageError, match="bytes of memory"):
        read_npz(tmp_path / "a.npz", ("sigma",), lambda headers: None, limit=8 << 20)


def test_other_files_are_named(tmp_path: Path) -> None:
    for name, content, said in (
        ("a.ply", b"ply\nformat ascii 1.0\n", "point cloud"),
        ("a.bin", b"hello", "starts with"),
        ("empty", b"", "starts with"),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UsageError, match=said):
            read_field(tmp_path / name, allow_pickle=True)
    with pytest.raises(UsageError, match="does not exist"):
        read_field(tmp_path / "nowhere")
    torch.save({"weights": torch.zeros(3)}, tmp_path / "other.pt")
    with pytest.raises(UsageError, match="an unknown program"):
        read_field(tmp_path / "other.pt", allow_pickle=True)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data(), kind=st.sampled_from(["pth", "npz"]))
def test_damaged_files_end_in_a_message(tmp_path: Path, data: st.DataObject, kind: str) -> None:
    whole = tmp_path / f"whole.{kind}"
    if not whole.exists() and kind == "pth":
        save_torch_ngp(whole, "tensors")
    elif not whole.exists():
        volume = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0))
        write_voxels_npz(FieldFile("tensors", {}, {"volume": volume}, BOX), whole)
    content = bytearray(whole.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        for _ in range(data.draw(st.integers(1, 8))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    damaged = tmp_path / f"damaged.{kind}"
    damaged.write_bytes(content)
    with contextlib.suppress(UsageError):
        read_field(damaged, allow_pickle=True)
