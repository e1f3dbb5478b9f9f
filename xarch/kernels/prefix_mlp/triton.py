"""The perceptron in Triton kernels: positions are gathered as they are read and scattered as they are written.

Legend: T positions, D width of the input, F hidden units, O width of the output.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.gpu import TOLERANCE, why_not_triton
from xarch.kernels.precision import island_dtype
from xarch.kernels.prefix_mlp.check import agrees
from xarch.kernels.prefix_mlp.operators import operator
from xarch.kernels.prefix_mlp.plain import Layer, flat, prefix_mlp_plain


def _check(device: str) -> None:
    """Several tiles of positions, of units and of the inner dimensions."""
    agrees(prefix_mlp_triton, 150, 70, 75, (0, 50, 90, 130), tolerance=TOLERANCE, device=device)


@register(
    "prefix_mlp",
    "triton",
    priority=50,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    lacks=["own_activation"],
    available=why_not_triton,
    check=_check,
)
def prefix_mlp_triton(
    x_TD: Tensor,
    count_T: Tensor,
    into: Sequence[Layer],
    out: Layer,
    edges: Sequence[int],
    *,
    activation: str | None,
) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.prefix_mlp`; float64 operands and empty calls run in PyTorch."""
    wide = island_dtype(x_TD, out[0], *(weight for weight, _ in into)) == torch.float64
    if wide or 0 in (x_TD.numel(), out[0].numel()):
        return prefix_mlp_plain(x_TD, count_T, into, out, edges, activation=activation)
    return _operator(x_TD, count_T, *flat(into, out), list(edges), activation)


def _forward(*call: Any) -> Tensor:
    from xarch.kernels.prefix_mlp import triton_launch

    return triton_launch.forward(*call)


_operator = operator("prefix_mlp_triton_forward", _forward)
