"""The perceptron position by position: the definition, and the reference for the other backends.

Legend: T positions, D width of the input, F hidden units, O width of the output.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype
from xarch.kernels.prefix_mlp.activation import hidden


@register("prefix_mlp", "naive", priority=0)
def prefix_mlp_naive(
    x_TD: Tensor,
    count_T: Tensor,
    into: Sequence[tuple[Tensor, Tensor | None]],
    out: tuple[Tensor, Tensor | None],
    edges: Sequence[int],
    *,
    activation: str | Callable[..., Tensor] | None,
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.prefix_mlp`."""
    dtype = island_dtype(x_TD, out[0], *(weight for weight, _ in into))
    weight_OF, bias_O = (None if t is None else t.to(dtype) for t in out)
    assert weight_OF is not None
    wide = [(w.to(dtype), None if b is None else b.to(dtype)) for w, b in into]
    rows = []
    for x_D, count in zip(x_TD.to(dtype), count_T.clamp(0, len(edges) - 1).tolist(), strict=True):
        units = edges[count]
        read = [F.linear(x_D, w[:units], None if b is None else b[:units]) for w, b in wide]
        rows.append(F.linear(hidden(read, activation), weight_OF[:, :units], bias_O))
    return (torch.stack(rows) if rows else x_TD.new_zeros(0, len(weight_OF))).to(x_TD.dtype)
