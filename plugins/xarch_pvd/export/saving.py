"""Export of a field to another program's file format: directly if supported, otherwise baked into voxels."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from xarch import UsageError
from xarch_field import RadianceField, render
from xarch_field.facts import ViewFacts
from xarch_pvd.data.views import fixed_cameras
from xarch_pvd.evaluate.metric import psnr
from xarch_pvd.source.field_file import save_field_file
from xarch_pvd.source.formats import tensors_to_svox2, write_pvd_pth, write_svox2_npz, write_voxels_npz
from xarch_pvd.source.formats.mesh_ply import write_mesh_ply
from xarch_pvd.source.formats.record import FieldFile
from xarch_pvd.source.reference import OpenedField, field_of, open_field
from xarch_pvd.targets.baking import baked
from xarch_pvd.targets.representations.records import to_file

SUFFIXES = {"xarch": ".safetensors", "torch-ngp": ".pth", "voxels": ".npz", "svox2": ".npz", "mesh": ".ply"}
"""Formats and their file suffixes; of two formats with the same suffix, the first is the default."""
IN_TORCH_NGP = ("hash", "mlp", "vm", "cp", "tensors", "torch-ngp-mlp", "torch-ngp-vm", "torch-ngp-cp")
CHECKED_VIEWS, CHECKED_SIDE, CHECKED_SAMPLES = 2, 64, 192


@dataclass(frozen=True, slots=True)
class SavingOptions:
    """Options for writing a field.

    Attributes:
        resolution: samples along the longest side for baking or for a mesh; None means 128, and no baking if the
            format supports the field.
        degree: spherical harmonics degree of baked colours.
        level: density per world unit at the surface of a mesh.
        half: use half precision where the format allows a choice (xarch voxels).
        linear: store density instead of its logarithm in xarch voxels.
        check: read the file back and compare renders.
    """

    resolution: int | None = None
    degree: int = 2
    level: float = 20.0
    half: bool = True
    linear: bool = False
    check: bool = True


def format_of(out: Path, named: str | None) -> str:
    """Return the format of an output file.

    Raises:
        UsageError: the suffix belongs to no format or not to the named one.
    """
    endings = ", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items())
    if named is None:
        found = [name for name, suffix in SUFFIXES.items() if suffix == out.suffix.lower()]
        if not found:
            raise UsageError(f"{out.name} ends in {out.suffix or 'nothing'}, which is not a known format", endings)
        return found[0]
    if named not in SUFFIXES:
        raise UsageError(f"unknown format {named!r}", f"known formats: {', '.join(SUFFIXES)}")
    if out.suffix.lower() != SUFFIXES[named]:
        raise UsageError(f"{named} files end in {SUFFIXES[named]}, but {out.name} does not", endings)
    return named


def save(opened: OpenedField, out: Path, kind: str, options: SavingOptions = SavingOptions()) -> dict[str, Any]:
    """Write a field; return a summary of the file and of its quality when read back.

    Keys: ``format``, ``arch`` (as written), ``bytes``; if baked: ``resolution``, ``degree``, ``psnr_baked`` (dB vs the
    field); if checked: ``psnr_read_again`` (dB vs the written field); svox2: ``density`` (the form that looks better);
    meshes: ``vertices``, ``faces``.

    Raises:
        UsageError: the format does not support the field, or the file cannot be written.
    """
    source = field_of(opened.record)
    if kind == "mesh":
        vertices, faces = write_mesh_ply(source, out, level=options.level, resolution=options.resolution or 128)
        return {"format": kind, "arch": "mesh", "bytes": out.stat().st_size, "vertices": vertices, "faces": faces}
    record, done = opened.record, {}
    if record.occupancy is None:
        record = replace(record, occupancy=source.occupancy)
    written = source
    if options.resolution is not None or not _has_form(record, kind):
        voxels = baked(source, resolution=options.resolution or 128, degree=options.degree)
        record, written = to_file(voxels, details=dict(record.details)), voxels
        done = {"resolution": list(voxels.volume.shape[:3]), "degree": voxels.degree}
        done["psnr_baked"] = compared(voxels, source, opened.views)
    if kind == "svox2" and record.arch == "tensors":
        # Solid scenes look better in one form, thin fog in the other: compare renders.
        forms = [tensors_to_svox2(record, exact=exact) for exact in (False, True)]
        record = max(forms, key=lambda form: compared(field_of(form), written, opened.views))
        done["density"] = record.details["density"]
    _write(record, opened.views, out, kind, options)
    found = {"format": kind, "arch": record.arch, "bytes": out.stat().st_size, **done}
    if options.check:
        again = field_of(open_field(str(out), allow_pickle=True).record)
        found["psnr_read_again"] = compared(again, written, opened.views)
    return found


def compared(one: RadianceField, two: RadianceField, views: ViewFacts) -> float:
    """Return the mean PSNR (dB) between renders of two fields over fixed small views."""
    scale = min(1.0, CHECKED_SIDE / max(views.width, views.height))
    small = replace(views, width=max(1, round(views.width * scale)), height=max(1, round(views.height * scale)))
    values = []
    background = torch.tensor(two.background)
    with torch.no_grad():
        for camera in fixed_cameras(small, CHECKED_VIEWS, "validation"):
            rays = camera.rays()
            first, second = (render(f, *rays, background, samples=CHECKED_SAMPLES)["rgb"] for f in (one, two))
            values.append(psnr(first.clamp(0, 1), second.clamp(0, 1)))
    return round(sum(values) / len(values), 2)


def _has_form(record: FieldFile, kind: str) -> bool:
    """Return whether a format supports a field without baking."""
    if kind == "xarch":
        return True
    if record.warp != "aabb":
        return False
    if kind == "voxels":
        return record.arch == "tensors"
    if kind == "svox2":
        return record.arch in ("tensors", "svox2")
    around = tuple(record.aabb) == (*(-record.bound,) * 3, *(record.bound,) * 3)
    cube = around if record.arch == "hash" else record.arch != "mlp" or (around and record.bound == 1)
    return record.arch in IN_TORCH_NGP and cube


def _write(record: FieldFile, views: ViewFacts, out: Path, kind: str, options: SavingOptions) -> None:
    if kind == "xarch":
        save_field_file(out, record, views, dict(record.details))
    elif kind == "torch-ngp":
        write_pvd_pth(record, out)
    elif kind == "svox2":
        write_svox2_npz(record, out)
    else:
        write_voxels_npz(record, out, half=options.half, linear=options.linear)
