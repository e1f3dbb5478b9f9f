"""Edited fields: each queries the underlying field and modifies the result.

An underlying field is undefined outside its own occupancy, so densities are masked before they are combined. The raw
log-density of an edited field is the logarithm of the result, bounded below by an invisible density.

Legend: N points, P parts, 3 = x, y, z (or r, g, b).
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Collection, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from xarch_field import RadianceField
from xarch_field.model import occupancy as occupancies
from xarch_pvd.editing.regions import Place

EDITED = "edited"
LOWEST = -100.0
"""Lower bound of the log-density: erased space is empty, not hazy."""
HEADS = ("sigma_net", "basis", "color_net")
"""Blocks that do not depend on the position of the box."""


class EditedField(RadianceField):
    """Base: parts in world space, and a box.

    Attributes:
        haze: density of the parts in empty space (their lower clip).
        inherits: blocks that a student of the first part's representation may inherit.
    """

    arch = EDITED
    inherits: tuple[str, ...] = ()

    def __init__(self, parts: Sequence[RadianceField], aabb: Tensor, *, warp: str, high: float, haze: float) -> None:
        first = parts[0]
        super().__init__(aabb=aabb, warp=warp, sigma_clip=(LOWEST, high), background=first.background)
        self.parts = nn.ModuleList(parts)
        self.haze = haze
        self.has_feature = first.has_feature

    @property
    def below(self) -> list[RadianceField]:
        """Return the parts."""
        return [cast(RadianceField, part) for part in self.parts]

    @property
    def first(self) -> RadianceField:
        """Return the field being edited."""
        return self.below[0]

    @abstractmethod
    def at(self, x_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        """Return the wanted values at world points: "sigma" [N] (masked), "rgb" [N, 3], "feature" [N, 16]."""

    @abstractmethod
    def possible(self, x_N3: Tensor) -> Tensor:
        """Return whether world points lie in occupied cells of the parts, bool [N]; cheaper than their density."""

    def evaluate(self, u_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        values = self.at(self.to_world(u_N3), d_N3, {"sigma", *want} - {"sigma_raw"})
        raw_N = torch.maximum(values.pop("sigma"), occupancies.faintest(self.aabb)).log()
        if "feature" in values:
            values["feature"] = torch.cat((raw_N[:, None], values["feature"][:, 1:]), dim=-1)
        return {**values, "sigma_raw": raw_N}

    def colour(self, source: Tensor, d_N3: Tensor) -> Tensor:
        return self.first.colour(source, self.turned(d_N3)) if self.has_feature else super().colour(source, d_N3)

    def before(self, x_N3: Tensor) -> Tensor:
        """Map points to the underlying field."""
        return x_N3

    def turned(self, d_N3: Tensor) -> Tensor:
        """Map directions to the underlying field."""
        return d_N3

    def state_blocks(self) -> dict[str, dict[str, Tensor]]:
        return {name: block for name, block in self.first.state_blocks().items() if name in self.inherits}

    def param_groups(self) -> dict[str, list[str]]:
        return {"grid": [], "net": [n for n, _ in self.named_parameters()]}


class Erased(EditedField):
    """Field without anything inside a place."""

    def __init__(self, field: RadianceField, place: Place) -> None:
        super().__init__([field], field.aabb, warp=field.warp, high=field.sigma_clip[1], haze=haze_of(field))
        self.place = place
        # Voxels are baked again instead, which erases exactly.
        self.inherits = tuple(name for name in blocks_of(field) if name != "volume")

    def at(self, x_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        values = self.first.query(x_N3, d_N3, want)
        return {**values, "sigma": values["sigma"] * ~self.place.holds(x_N3)}

    def possible(self, x_N3: Tensor) -> Tensor:
        return possible(self.first, x_N3) & ~self.place.holds(x_N3)


class Cropped(EditedField):
    """Field without anything outside a place; its box is that of the place."""

    def __init__(self, field: RadianceField, place: Place) -> None:
        box = place.bounds
        if field.warp == "aabb":
            box = torch.stack((torch.maximum(box[0], field.aabb[0]), torch.minimum(box[1], field.aabb[1])))
        super().__init__([field], box, warp="aabb", high=field.sigma_clip[1], haze=haze_of(field))
        self.place = place
        self.inherits = tuple(name for name in blocks_of(field) if name in HEADS)

    def at(self, x_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        values = self.first.query(x_N3, d_N3, want)
        return {**values, "sigma": values["sigma"] * self.place.holds(x_N3)}

    def possible(self, x_N3: Tensor) -> Tensor:
        return possible(self.first, x_N3) & self.place.holds(x_N3)


class Moved(EditedField):
    """Field that is scaled, rotated and translated.

    A point x of the field moves to A x + b. Lengths scale too, so densities are divided by |det A|^⅓ to preserve the
    optical depth of a path. This is exact for a uniform scale; otherwise it holds for paths in the mean direction.

    Args:
        field: the field to move.
        matrix: [3, 4], nonsingular A [3, 3] with b as the fourth column.
    """

    back: Tensor
    shift: Tensor

    def __init__(self, field: RadianceField, matrix: Tensor) -> None:
        turn, shift = matrix[:, :3].double(), matrix[:, 3]
        self.gain = float(torch.linalg.det(turn).abs() ** (-1 / 3))
        corners = torch.cartesian_prod(*field.aabb.double().unbind(dim=-1)) @ turn.T + shift
        box = torch.stack((corners.amin(dim=0), corners.amax(dim=0))).float()
        high = field.sigma_clip[1] + math.log(self.gain)
        super().__init__([field], box, warp=field.warp, high=high, haze=haze_of(field) * self.gain)
        self.register_buffer("back", torch.linalg.inv(turn).float())
        self.register_buffer("shift", shift.float())
        diagonal = torch.diag(torch.diagonal(turn))
        upright = torch.equal(turn, diagonal) and bool((torch.diagonal(turn) > 0).all())
        # Without a rotation, the moved box has the field's own unit cube: grids fit unchanged.
        kept = blocks_of(field) if upright and field.warp == "aabb" else HEADS
        self.inherits = tuple(name for name in blocks_of(field) if name in kept)

    def at(self, x_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        values = self.first.query(self.before(x_N3), None if d_N3 is None else self.turned(d_N3), want)
        return {**values, "sigma": values["sigma"] * self.gain}

    def possible(self, x_N3: Tensor) -> Tensor:
        return possible(self.first, self.before(x_N3))

    def turned(self, d_N3: Tensor) -> Tensor:
        return torch.nn.functional.normalize(d_N3 @ self.back.T, dim=-1)

    def before(self, x_N3: Tensor) -> Tensor:
        return (x_N3 - self.shift) @ self.back.T


class Composed(EditedField):
    """Several fields in one space; they have no common feature.

    Args:
        fields: the first one determines background and cameras.
        mode: "sum" adds densities; "max" uses the highest. Both weight colours by density.
    """

    def __init__(self, fields: Sequence[RadianceField], mode: str) -> None:
        boxes = torch.stack([f.aabb for f in fields])
        box = torch.stack((boxes[:, 0].amin(dim=0), boxes[:, 1].amax(dim=0)))
        warp = next((f.warp for f in fields if f.warp != "aabb"), "aabb")
        high = max(f.sigma_clip[1] for f in fields) + math.log(len(fields))
        super().__init__(fields, box, warp=warp, high=high, haze=sum(haze_of(f) for f in fields))
        self.mode, self.has_feature = mode, False

    def at(self, x_N3: Tensor, d_N3: Tensor | None, want: Collection[str]) -> dict[str, Tensor]:
        parts = [part.query(x_N3, d_N3, want) for part in self.below]
        sigma_PN = torch.stack([part["sigma"] for part in parts])
        values = {"sigma": sigma_PN.amax(dim=0) if self.mode == "max" else sigma_PN.sum(dim=0)}
        if "rgb" in want:
            share_PN = sigma_PN + occupancies.faintest(self.aabb)
            rgb_PN3 = torch.stack([part["rgb"] for part in parts])
            values["rgb"] = (share_PN[:, :, None] * rgb_PN3).sum(dim=0) / share_PN.sum(dim=0)[:, None]
        return values

    def possible(self, x_N3: Tensor) -> Tensor:
        return torch.stack([possible(part, x_N3) for part in self.below]).any(dim=0)


def possible(field: RadianceField, x_N3: Tensor) -> Tensor:
    """Return where a field, edited or not, may hold matter."""
    return field.possible(x_N3) if isinstance(field, EditedField) else field.occupied(x_N3)


def haze_of(field: RadianceField) -> float:
    """Return the density of a field in empty space."""
    return field.haze if isinstance(field, EditedField) else math.exp(field.sigma_clip[0])


def blocks_of(field: RadianceField) -> tuple[str, ...]:
    """Return the blocks that a student may inherit from a field."""
    return tuple(field.state_blocks())
