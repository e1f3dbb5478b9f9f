"""What the compiled backends must agree on with the definition before they are used."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from xarch.kernels.prefix_mlp.naive import prefix_mlp_naive
from xarch.kernels.selfcheck import agree, waves


def agrees(
    backend: Callable[..., Tensor],
    positions: int,
    width: int,
    outputs: int,
    edges: Sequence[int],
    *,
    tolerance: float,
    device: str = "cpu",
) -> None:
    """Compare a backend with the naive one in values and gradients: every number of blocks, and two layers."""
    units, count = edges[-1], torch.arange(positions, device=device) * 7 % len(edges)
    shapes = [(positions, width), (units, width), (units,), (units, width), (units,), (outputs, units), (outputs,)]
    inputs = [
        waves(*shape, phase=i, device=device) / (1 if i % 2 == 0 else shape[-1] ** 0.5)
        for i, shape in enumerate(shapes)
    ]

    def run(function: Callable[..., Tensor]) -> Callable[..., Sequence[Tensor]]:
        def call(x: Tensor, *w: Tensor) -> Sequence[Tensor]:
            into = ((w[0], w[1]), (w[2], w[3]))
            return (function(x, count, into, (w[4], w[5]), edges, activation="gelu"),)

        return call

    agree(run(backend), run(prefix_mlp_naive), inputs, tolerance=tolerance)
