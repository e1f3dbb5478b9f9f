"""Fields named by a reference: a file, ``demo``, or a run with a field as its student."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

import xarch
from xarch import UsageError
from xarch_field import RadianceField
from xarch_field.facts import FieldFacts, ViewFacts
from xarch_field.model.densities import build as build_occupancy
from xarch_pvd.editing.build import others_of
from xarch_pvd.editing.record import edited_record
from xarch_pvd.editing.schema import read_edits
from xarch_pvd.source.field_file import is_field_file, load_field_file
from xarch_pvd.source.formats import read_field
from xarch_pvd.source.formats.nerfstudio import last_checkpoint
from xarch_pvd.source.formats.record import FieldFile
from xarch_pvd.targets.representations.records import from_file, to_file
from xarch_pvd.train.demo import DEMO, demo_field

RESOLUTION = 64
"""Cells per axis of an occupancy grid computed here."""
SPHERE = 1.9
"""Camera distance in circumradii of the box, for files that do not describe their cameras."""


@dataclass(frozen=True, slots=True)
class OpenedField:
    """A field before its module is built.

    Attributes:
        record: the content of its file.
        views: its cameras; if unknown, on a sphere around the box.
        path: the file with its weights, identified by its digest.
    """

    record: FieldFile
    views: ViewFacts
    path: Path


def open_field(ref: str, *, allow_pickle: bool = False, edits: str | Sequence[Any] = ()) -> OpenedField:
    """Open the field of a reference: FILE, ``demo`` or RUN, optionally prefixed with ``field:`` or ``run:``.

    Args:
        edits: edits to apply, see :mod:`xarch_pvd.editing.schema`; a list, its text, or a file with one.

    Raises:
        UsageError: the reference does not exist, its format is unknown, the run is of another family, or an edit is
            invalid.
    """
    opened = _opened(ref, allow_pickle)
    if not edits:
        return opened
    read = read_edits(edits)
    others = [_joining(other, allow_pickle) for other in others_of(read)]
    record, views = edited_record(opened.record, opened.views, read, others)
    return replace(opened, record=record, views=views)


def _opened(ref: str, allow_pickle: bool) -> OpenedField:
    ref = ref.removeprefix("field:").removeprefix("run:")
    path = demo_field() if ref == DEMO else Path(ref).expanduser()
    home = next((f for f in (path / "student", path) if (f / "config.json").is_file()), None)
    if home is not None:
        return _student(path, home)
    path = _checkpoint(path)
    if not path.is_file():
        raise UsageError(f"field:{ref}: no such file", "try `field:demo`, which is trained on first use")
    if is_field_file(path):
        record, views = load_field_file(path)
        return OpenedField(record, views, path)
    record = read_field(path, allow_pickle=allow_pickle)
    return OpenedField(record, views_around(record), path)


def _joining(ref: str, allow_pickle: bool) -> FieldFile:
    try:
        return _opened(ref, allow_pickle).record
    except UsageError as e:
        raise UsageError(f"edits, compose with {ref!r}: {e.what}", e.hint) from e


def field_of(record: FieldFile) -> RadianceField:
    """Build the frozen module of a record; occupied cells are computed if its file has none."""
    field = from_file(record)
    if record.occupancy is None:
        field.set_occupancy(build_occupancy(field, resolution=RESOLUTION))
    return field.eval().requires_grad_(False)


def views_around(record: FieldFile) -> ViewFacts:
    """Return cameras on a sphere around the box of a field."""
    corners = torch.tensor(record.aabb).view(2, 3)
    middle = corners.mean(dim=0).tolist()
    radius = SPHERE * float((corners[1] - corners[0]).norm()) / 2
    views = replace(ViewFacts(), radius=(radius, radius), target=(middle[0], middle[1], middle[2]))
    if record.details.get("world") == "torch-ngp":
        return replace(views, world_of="torch-ngp")
    moved = record.details.get("dataparser")
    if isinstance(moved, Mapping):
        # nerfstudio says how its cameras came to stand where they did, from before a transforms.json was turned.
        world = (*(number for row in moved["transform"] for number in row), moved["scale"])
        views = replace(views, world=world, world_of="capture")
    return views


def _checkpoint(path: Path) -> Path:
    """Return the file itself, or the latest checkpoint of a nerfstudio run folder."""
    try:
        return last_checkpoint(path)
    except UsageError:
        raise UsageError(
            f"field:{path} is a folder of images, not a trained field",
            f"train a teacher first: `xarch pvd train {path} --out teacher.safetensors`",
        ) from None


def _student(folder: Path, home: Path) -> OpenedField:
    student = xarch.load_student(folder)
    field, facts = student.module, student.facts
    if not isinstance(field, RadianceField) or not isinstance(facts, FieldFacts):
        raise UsageError(f"{folder} is not a radiance field: its student is a {type(field).__name__}")
    details = {"format": "student of a run", "run": folder.name}
    return OpenedField(to_file(field, details=details), facts.views, home / "model.safetensors")
