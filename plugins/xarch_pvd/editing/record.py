"""File record of an edited field: its complete source fields and the list of edits.

Storage is lossless and self-contained. Options of the record: ``edits`` (the list) and ``parts`` (the parts' records
without their tensors). Tensors are named ``parts.0.NAME``, occupancies ``parts.0.occupancy``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pydantic import Field
from torch import Tensor

from xarch import Options, UsageError, typed, validated
from xarch_field import RadianceField
from xarch_field.facts import ViewFacts
from xarch_field.model.densities import build as build_occupancy
from xarch_pvd.editing.build import Edits, edited, matter_box, others_of
from xarch_pvd.editing.cameras import views_after
from xarch_pvd.editing.fields import EDITED, EditedField
from xarch_pvd.editing.matter import settle
from xarch_pvd.editing.schema import MAX_EDITS, plain, read_edits
from xarch_pvd.source.formats.record import FieldFile, FieldHead
from xarch_pvd.targets.representations.records import from_file

PART_RESOLUTION = 64


class EditedOptions(Options):
    """Options of the record of an edited field."""

    edits: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_EDITS)
    parts: list[dict[str, Any]] = Field(min_length=1, max_length=MAX_EDITS + 1)


def edited_record(
    record: FieldFile, views: ViewFacts, edits: Edits, others: Sequence[FieldFile]
) -> tuple[FieldFile, ViewFacts]:
    """Return the record of a field with edits, its box and occupancy recomputed, and the cameras that see it.

    Args:
        views: cameras of the unedited field.
        others: the composed fields, in the order of :func:`xarch_pvd.editing.build.others_of`.

    Raises:
        UsageError: see :func:`xarch_pvd.editing.build.edited`; or nothing is left.
    """
    parts, done = [record], []
    if record.arch == EDITED:
        parts, done = _parts(record), list(record.options["edits"])
    parts += others
    options = {"edits": done + plain(edits), "parts": [p.head() for p in parts]}
    field = _field(parts, options["edits"])
    settle(field, keep_box=keeps_box(field))
    if not bool(field.occupancy.any()):
        raise UsageError("nothing is left of the scene after the edits", "erase less, or crop to a larger region")
    if any("erase" not in edit for edit in plain(edits)):
        views = views_after(views, matter_box(_module(record)), matter_box(field))
    low, high = field.aabb.tolist()
    background = field.background
    made = FieldFile(
        arch=EDITED,
        options=options,
        tensors={f"parts.{i}.{n}": t for i, part in enumerate(parts) for n, t in _tensors(part).items()},
        aabb=(low[0], low[1], low[2], high[0], high[1], high[2]),
        warp=field.warp,
        sigma_clip=field.sigma_clip,
        occupancy=field.occupancy.cpu(),
        background=(background[0], background[1], background[2]),
        details={**record.details, "edits": [name for edit in options["edits"] for name in edit]},
    )
    return made, views


def edited_field(record: FieldFile) -> EditedField:
    """Build the module of a record.

    Raises:
        UsageError: the record is damaged.
    """
    field = _field(_parts(record), record.options.get("edits", []))
    field.aabb.copy_(torch.tensor(record.aabb).view(2, 3))
    if record.occupancy is not None:
        field.set_occupancy(record.occupancy)
    else:
        settle(field, keep_box=True)
    return field


def keeps_box(field: EditedField) -> bool:
    """Return whether a student may inherit grids of the edited field, which requires an unchanged box."""
    return bool(set(field.inherits) & {"encoder", "factors", "trunk"})


def _field(parts: Sequence[FieldFile], edits: Sequence[Mapping[str, Any]]) -> EditedField:
    read = read_edits(edits)
    if len(parts) != 1 + len(list(others_of(read))):
        raise UsageError(
            f"the edited field has {len(parts)} parts, but its edits refer to a different number",
            "recreate the edited field",
        )
    modules = iter([_module(part) for part in parts])
    field = edited(next(modules), read, modules)
    if not isinstance(field, EditedField):
        raise UsageError("the list of edits is empty", "for example [{erase: {box: [[-1, -1, -1], [1, 1, 0]]}}]")
    return field.eval()


def _module(part: FieldFile) -> RadianceField:
    field = from_file(part)
    if part.occupancy is None:
        field.set_occupancy(build_occupancy(field, resolution=PART_RESOLUTION))
    return field.eval().requires_grad_(False)


def _parts(record: FieldFile) -> list[FieldFile]:
    said = validated(EditedOptions, record.options, "options of an edited field", "recreate the edited field")
    return [_part(record, i, head) for i, head in enumerate(said.parts)]


def _part(record: FieldFile, index: int, head: dict[str, Any]) -> FieldFile:
    prefix = f"parts.{index}."
    tensors = {n.removeprefix(prefix): t for n, t in record.tensors.items() if n.startswith(prefix)}
    return FieldFile.from_head(typed(FieldHead, head, f"part {index} of an edited field"), tensors)


def _tensors(part: FieldFile) -> dict[str, Tensor]:
    return dict(part.tensors) if part.occupancy is None else {**part.tensors, "occupancy": part.occupancy}
