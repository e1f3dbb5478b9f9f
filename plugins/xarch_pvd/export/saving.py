"""Writing a field into a file of another program: as it is where that has a form for it, else baked into voxels."""

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
from xarch_pvd.source.opened import OpenedField, field_of, open_field
from xarch_pvd.targets.baking import baked
from xarch_pvd.targets.representations.records import to_file

SUFFIXES = {"xarch": ".safetensors", "torch-ngp": ".pth", "voxels": ".npz", "svox2": ".npz", "mesh": ".ply"}
"""Formats and how their files end; of two formats with one ending the first is taken by default."""
IN_TORCH_NGP = ("hash", "mlp", "vm", "cp", "tensors", "torch-ngp-mlp", "torch-ngp-vm", "torch-ngp-cp")
CHECKED_VIEWS, CHECKED_SIDE, CHECKED_SAMPLES = 2, 64, 192


@dataclass(frozen=True, slots=True)
class SavingOptions:
    """How a field is written.

    Attributes:
        resolution: samples along the longest side where the field is baked, or of the grid a mesh is made from; None
            takes 128, and keeps a field that has a form in the file as it is.
        degree: of the harmonics of baked colours.
        level: density per world unit at the surface of a mesh.
        half: half precision where the format leaves the choice (xarch voxels).
        linear: density instead of its logarithm in xarch voxels.
        check: read the file again and compare pictures.
    """

    resolution: int | None = None
    degree: int = 2
    level: float = 20.0
    half: bool = True
    linear: bool = False
    check: bool = True


def format_of(out: Path, named: str | None) -> str:
    """The format of a file to be written.

    Raises:
        UsageError: an ending that no format has, or a format whose files end otherwise.
    """
    endings = ", ".join(f"{suffix} ({name})" for name, suffix in SUFFIXES.items())
    if named is None:
        found = [name for name, suffix in SUFFIXES.items() if suffix == out.suffix.lower()]
        if not found:
            raise UsageError(f"{out.name} ends in {out.suffix or 'nothing'}, which is no known format", endings)
        return found[0]
    if named not in SUFFIXES:
        raise UsageError(f"no format is called {named!r}", f"known: {', '.join(SUFFIXES)}")
    if out.suffix.lower() != SUFFIXES[named]:
        raise UsageError(f"files of {named} end in {SUFFIXES[named]}, {out.name} does not", endings)
    return named


def save(opened: OpenedField, out: Path, kind: str, options: SavingOptions = SavingOptions()) -> dict[str, Any]:
    """Write a field; returns what was written and how well it renders when it is read again.

    Keys: ``format``, ``arch`` (as written), ``bytes``; baked: ``resolution``, ``degree``, ``psnr_baked`` (dB to the
    field); read again: ``psnr_read_again`` (dB to what was written); svox2: ``density`` (which
    form of it looks better); meshes: ``vertices``, ``faces``.

    Raises:
        UsageError: the field has no form in this format, or the file cannot be written.
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
        # Solid scenes look better in one form, thin fog in the other: pictures decide.
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
    """Mean PSNR (dB) between renders of two fields over fixed small views."""
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
    """Whether a format holds a field as it is."""
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
