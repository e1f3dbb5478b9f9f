"""The place of the smallest element without ArgMin, for profiles without it: ArgMax is there, and takes the first of
equal elements, too, but gives 64-bit integers only."""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.errors import UsageError
from xarch.export.lowerings.lowering import Lowering


def argmin(input: Tensor, dim: int | None = None, keepdim: bool = False) -> Tensor:
    """Replace ``torch.argmin`` along a dimension of fixed size: the least place of those that hold the minimum.

    Raises:
        UsageError: no dimension is given.
    """
    if dim is None:
        raise UsageError("argmin over all dimensions cannot be exported without ArgMin", "flatten and give `dim`")
    size = input.shape[dim]
    shape = [1] * input.dim()
    shape[dim] = size
    places = torch.tensor([float(i) for i in range(size)], device=input.device).reshape(shape)
    found = torch.where(input == input.amin(dim, keepdim=True), places, float(size))
    return found.amin(dim, keepdim=keepdim).to(torch.int64)


LOWERING = Lowering(
    "argmin",
    "torch.argmin as comparisons with the minimum",
    replaces=("ArgMin",),
    functions={torch.argmin: argmin, torch.Tensor.argmin: argmin},
)
