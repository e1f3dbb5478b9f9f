"""Build an edited field from a list of edits."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import torch
from pydantic import BaseModel
from torch import Tensor

from xarch import UsageError
from xarch_field import RadianceField
from xarch_pvd.editing.affine import matrix_of
from xarch_pvd.editing.fields import Composed, Cropped, EditedField, Erased, Moved, possible
from xarch_pvd.editing.matter import holds_matter
from xarch_pvd.editing.regions import Place, place_of
from xarch_pvd.editing.schema import Affine, Compose, Crop, Erase, Region, read_edits

POINTS = 1 << 14
"""Number of random points at which a region is searched for matter."""

Edits = Sequence[Mapping[str, BaseModel]]


def others_of(edits: Edits) -> Iterator[str]:
    """Yield the references of composed fields in the order in which they are needed."""
    for edit in edits:
        for options in edit.values():
            if isinstance(options, Compose):
                yield options.with_
                yield from others_of(read_edits(options.edits))


def edited(field: RadianceField, edits: Edits, others: Iterator[RadianceField], where: str = "edits") -> RadianceField:
    """Apply edits to a field.

    Args:
        others: the fields of :func:`others_of`, in this order.
        where: name of the edits in errors.

    Raises:
        UsageError: an edit does not touch the scene or removes all of it, a matrix is singular, or the field has no
            world space.
    """
    if field.warp == "ndc":
        raise UsageError(
            f"{where}: a field in normalised device coordinates cannot be edited", "use a field in a world box"
        )
    for i, edit in enumerate(edits):
        for name, options in edit.items():
            field = _one(field, options, others, f"{where}[{i}].{name}")
    return field


def _one(field: RadianceField, edit: BaseModel, others: Iterator[RadianceField], where: str) -> EditedField:
    if isinstance(edit, Affine):
        return Moved(field, matrix_of(edit, field.aabb.mean(dim=0), where))
    if isinstance(edit, Compose):
        other = edited(next(others), read_edits(edit.edits), others, f"{where}.edits")
        return Composed([field, other], edit.mode)
    assert isinstance(edit, Region)
    place = place_of(edit)
    _must_touch(field, place, where)
    if isinstance(edit, Erase):
        return Erased(field, place)
    assert isinstance(edit, Crop)
    return Cropped(field, place)


def _must_touch(field: RadianceField, place: Place, where: str) -> None:
    """Reject a region without matter: its numbers are wrong or belong to another world.

    Raises:
        UsageError: the region is empty; names where the matter lies.
    """
    low, high = place.bounds
    if field.warp == "aabb":
        low, high = torch.maximum(low, field.aabb[0]), torch.minimum(high, field.aabb[1])
    generator = torch.Generator().manual_seed(0)
    if bool((low < high).all()):
        x_N3 = low + torch.rand(POINTS, 3, generator=generator) * (high - low)
        x_N3 = x_N3[place.holds(x_N3)]
        x_N3 = x_N3[possible(field, x_N3)]
        if len(x_N3) and bool(holds_matter(field, x_N3).any()):
            return
    raise UsageError(
        f"{where}: the region {_corners(place.bounds)} contains nothing of the scene",
        f"the field's matter spans {_corners(matter_box(field))} in its world units",
    )


@torch.no_grad()
def matter_box(field: RadianceField) -> Tensor:
    """Return the corners [2, 3] of a field's visible matter, from samples of its box; the box if none is found."""
    generator = torch.Generator().manual_seed(0)
    box = field.march_box()
    x_N3 = box[0] + torch.rand(8 * POINTS, 3, generator=generator) * (box[1] - box[0])
    x_N3 = x_N3[possible(field, x_N3)]
    if len(x_N3):
        x_N3 = x_N3[holds_matter(field, x_N3)]
    return torch.stack((x_N3.amin(dim=0), x_N3.amax(dim=0))) if len(x_N3) else box


def _corners(box_23: Tensor) -> str:
    low, high = ([round(v, 3) for v in corner] for corner in box_23.tolist())
    return f"{low} to {high}"
