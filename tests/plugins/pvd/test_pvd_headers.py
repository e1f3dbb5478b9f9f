"""A field's header is believed only after it was compared with the file: no memory for what it merely promises."""

from __future__ import annotations

import io
import json
import resource
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from xarch import UsageError, validated
from xarch_field.facts import FieldFacts, ViewFacts
from xarch_pvd.data.datasets.pictures import picture_size, read_picture
from xarch_pvd.source.field_file import KEY, save_field_file
from xarch_pvd.source.formats.npz_file import names, read_npy
from xarch_pvd.source.reference import field_of, open_field
from xarch_pvd.targets.representations import OPTIONS, build_field
from xarch_pvd.targets.representations.records import to_file

BOX = [[-1.0] * 3, [1.0] * 3]
SMALL: dict[str, dict[str, Any]] = {
    "tensors": {"resolution": 4},
    "hash": {"levels": 2, "log2_size": 5, "finest": 8, "base": 4, "hidden": 8},
    "mlp": {"layers": 2, "width": 8, "frequencies": 2},
    "vm": {"resolution": 4, "density_rank": 2, "colour_rank": 2},
}


def field_file(path: Path, kind: str, **head: Any) -> Path:
    """A small field whose header says other things than it should."""
    options = OPTIONS[kind].model_validate(SMALL[kind])
    field = build_field(kind, options, aabb=BOX, occupancy=torch.ones(2, 2, 2, dtype=torch.bool))
    save_field_file(path, to_file(field), ViewFacts(), {})
    whole = path.read_bytes()
    size = struct.unpack("<Q", whole[:8])[0]
    header = json.loads(whole[8 : 8 + size])
    said = json.loads(header["__metadata__"][KEY])
    for key, value in head.items():
        said[key] = {**said[key], **value} if isinstance(value, dict) and isinstance(said.get(key), dict) else value
    header["__metadata__"][KEY] = json.dumps(said)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + size :])
    return path


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("tensors", {"resolution": 1500}),
        ("tensors", {"resolution": [16000, 16000, 16000]}),
        ("tensors", {"resolution": 100_000}),
        ("mlp", {"width": 60_000, "layers": 16}),
        ("mlp", {"width": 10**30}),
        ("hash", {"levels": 32, "log2_size": 24, "features": 8}),
        ("hash", {"sizes": [1 << 28, 1 << 28]}),
        ("hash", {"sizes": [8]}),
        ("hash", {"finest": 1e300}),
        ("vm", {"resolution": 16000, "density_rank": 4096, "colour_rank": 4096}),
    ],
)
def test_options_beyond_the_file_take_no_memory(tmp_path: Path, arch: str, options: dict[str, Any]) -> None:
    """faults 7: 9 kB asked for up to 16 PB."""
    file = field_file(tmp_path / "f.safetensors", arch, options=options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UsageError):
        open_field(str(file))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 300 << 10


@pytest.mark.parametrize(
    ("head", "what"),
    [
        ({"options": 5}, "options"),
        ({"options": None}, "options"),
        ({"arch": {}}, "arch"),
        ({"arch": "svox2"}, "resolution"),
        ({"arch": "edited"}, "edits"),
        ({"arch": "other"}, "unknown field kind"),
        ({"aabb": [1, 2]}, "aabb"),
        ({"aabb": [0, 0, 0, 1, 1, "x"]}, "aabb.5"),
        ({"aabb": [0, 0, 0, 1, 1, 1e300]}, "aabb.5"),
        ({"aabb": [0, 0, 0, 0, 0, 0]}, "empty"),
        ({"warp": "sideways"}, "warp"),
        ({"warp": None}, "warp"),
        ({"sigma_clip": [7, -2]}, "sigma_clip"),
        ({"sigma_clip": [0, 1e4]}, "sigma_clip"),
        ({"background": "white"}, "background"),
        ({"background": [2, 0, 0]}, "background"),
        ({"views": []}, "views"),
        ({"views": {"width": 10**9}}, "width"),
        ({"views": {"poses": [[1, 2]]}}, "poses"),
        ({"views": {"world": [1]}}, "13 numbers"),
        ({"views": {"focal": -1}}, "focal"),
        ({"details": 3}, "details"),
        ({"format": 9}, "format version"),
        ({"surprise": 1}, "surprise"),
    ],
)
def test_wrong_heads_are_named(tmp_path: Path, head: dict[str, Any], what: str) -> None:
    """faults 19: 134 of 1500 mutated heads ended in errors of Python."""
    file = field_file(tmp_path / "f.safetensors", "tensors", **head)
    with pytest.raises(UsageError, match=what):
        field_of(open_field(str(file)).record)


def test_a_sound_head_is_read(tmp_path: Path) -> None:
    for arch in SMALL:
        field_of(open_field(str(field_file(tmp_path / "f.safetensors", arch))).record)


@pytest.mark.parametrize(
    "change",
    [
        {"occupancy": 10**6},
        {"samples": 0},
        {"aabb": [[0, 0, 0]]},
        {"views": {"height": "x"}},
        {"extra": 1},
        {"arch": None},
    ],
)
def test_facts_of_a_student_are_typed(change: dict[str, Any]) -> None:
    data = FieldFacts("vm", ((-1.0, -1.0, -1.0), (1.0, 1.0, 1.0))).to_json()
    assert FieldFacts.from_json(json.loads(json.dumps(data))).to_json() == data
    with pytest.raises(UsageError, match="field facts"):
        FieldFacts.from_json({**data, **change})


def voxels(**change: Any) -> dict[str, np.ndarray]:
    arrays: dict[str, Any] = {
        "sigma_raw": np.zeros((3, 3, 3), "f4"),
        "sh": np.zeros((3, 3, 3, 3, 1), "f4"),
        "aabb": np.array([-1, -1, -1, 1, 1, 1.0]),
    }
    return {k: v for k, v in {**arrays, **change}.items() if v is not None}


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"aabb": None}, "no aabb"),
        ({"aabb": np.array("abcdef")}, "expected numbers"),
        ({"sh": np.array("text")}, "expected numbers"),
        ({"sh": None, "rgb": np.array(["a"])}, "expected numbers"),
        ({"sh": None}, "no colour"),
        ({"sh": np.zeros((3, 3, 3, 3, 5))}, "degree"),
        ({"occupancy": np.array(True)}, "occupancy"),
        ({"occupancy": np.ones((0, 2, 2))}, "occupancy"),
        ({"sigma_raw": np.zeros((3, 3))}, "sigma"),
        ({"sigma_clip": np.array([1.0, 2.0, 3.0])}, "sigma_clip"),
        ({"background": np.array([True, True, True])}, "background"),
        ({"sigma_raw": None, "sigma": np.zeros((3, 3, 3)), "aabb": np.zeros(6)}, "empty box"),
    ],
)
def test_arrays_are_checked_by_their_headers(tmp_path: Path, change: dict[str, Any], what: str) -> None:
    np.savez(tmp_path / "a.npz", **voxels(**change))
    with pytest.raises(UsageError, match=what):
        open_field(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("name", ["basis_type", "radius", "links"])
def test_a_sparse_grid_with_an_odd_array(tmp_path: Path, name: str) -> None:
    arrays = {
        "links": np.arange(8, dtype=np.int64).reshape(2, 2, 2),
        "density_data": np.ones((8, 1), "f4"),
        "sh_data": np.ones((8, 3), "f2"),
        "radius": np.ones(3),
        "basis_type": np.array(1),
    }
    odd = {"basis_type": np.zeros(0), "radius": np.array("x"), "links": np.full((2, 2, 2), 2**40)}
    np.savez(tmp_path / "a.npz", **{**arrays, name: odd[name]})
    with pytest.raises(UsageError):
        open_field(str(tmp_path / "a.npz"))
    np.savez(tmp_path / "a.npz", **{**arrays, "links": arrays["links"] - 2**40})
    assert not bool(open_field(str(tmp_path / "a.npz")).record.occupancy.any())  # type: ignore[union-attr]


def test_an_array_of_gigabytes_is_not_unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """faults 17: 3.9 MB took 5.3 GB, before a missing array was noticed."""
    monkeypatch.setattr("xarch.files.limits.RATIO_FREE", 1 << 20)
    header = io.BytesIO()
    np.lib.format.write_array_header_1_0(header, {"descr": "<f4", "fortran_order": False, "shape": (100, 100, 100)})
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("sigma_raw.npy", header.getvalue() + b"\0" * (4 * 100**3))
    with pytest.raises(UsageError, match="unpacks from"):
        open_field(str(tmp_path / "a.npz"))


def test_an_archive_of_a_future_version_is_no_archive(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **voxels())
    content = bytearray((tmp_path / "a.npz").read_bytes())
    at = content.rindex(b"PK\x01\x02")
    content[at + 6] = 117
    (tmp_path / "a.npz").write_bytes(content)
    names(tmp_path / "a.npz")
    with pytest.raises(UsageError):
        open_field(str(tmp_path / "a.npz"))


@pytest.mark.parametrize("content", [b"", b"\x93NUMPY", b"PK\x03\x04", b"\x80\x04K\x01."])
def test_a_table_of_numbers_is_no_archive_and_no_pickle(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.npy").write_bytes(content)
    with pytest.raises(UsageError):
        read_npy(tmp_path / "a.npy")
    np.save(tmp_path / "a.npy", np.eye(3))
    assert read_npy(tmp_path / "a.npy").shape == (3, 3)
    header = (tmp_path / "a.npy").read_bytes()[:128].replace(b"(3, 3)", b"(1 << 40,)"[:6])
    (tmp_path / "a.npy").write_bytes(header)
    with pytest.raises(UsageError):
        read_npy(tmp_path / "a.npy")


def test_pictures_are_no_programs(tmp_path: Path) -> None:
    """Pillow lets Ghostscript draw PostScript, whatever the file is called."""
    (tmp_path / "a.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 4 4\n%%EndComments\nshowpage\n")
    with pytest.raises(UsageError, match="not an image"):
        picture_size(tmp_path / "a.png")
    with pytest.raises(UsageError, match="not a readable image"):
        read_picture(tmp_path / "a.png", 4, 4)


def test_representations_have_limits() -> None:
    for arch, options in (("vm", {"resolution": 1 << 20}), ("mlp", {"width": 1 << 20}), ("hash", {"hidden": 1 << 20})):
        with pytest.raises(UsageError, match="less than or equal"):
            validated(OPTIONS[arch], options, "options")
