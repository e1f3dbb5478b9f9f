"""Regions of space that are erased or kept. Legend: N points, 3 = x, y, z."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from xarch_pvd.editing.schema import Region


class Place(nn.Module, ABC):
    """A region of space, on the device of its field.

    Attributes:
        bounds: the smallest box around it [2, 3].
    """

    bounds: Tensor

    @abstractmethod
    def holds(self, x_N3: Tensor) -> Tensor:
        """Return whether points lie inside, bool [N]."""


class BoxPlace(Place):
    """A box, including its faces."""

    def __init__(self, bounds: Tensor) -> None:
        super().__init__()
        self.register_buffer("bounds", bounds)

    def holds(self, x_N3: Tensor) -> Tensor:
        return ((x_N3 >= self.bounds[0]) & (x_N3 <= self.bounds[1])).all(dim=-1)


class SpherePlace(Place):
    """A ball."""

    centre: Tensor
    radius: Tensor

    def __init__(self, centre: Tensor, radius: float) -> None:
        super().__init__()
        self.register_buffer("centre", centre)
        self.register_buffer("radius", torch.tensor(radius))
        self.register_buffer("bounds", torch.stack((centre - radius, centre + radius)))

    def holds(self, x_N3: Tensor) -> Tensor:
        return (x_N3 - self.centre).square().sum(dim=-1) <= self.radius.square()


def place_of(region: Region) -> Place:
    """Build the place of a region given by a user."""
    if region.sphere is not None:
        return SpherePlace(torch.tensor(region.sphere.centre), region.sphere.radius)
    return BoxPlace(torch.tensor(region.box))
