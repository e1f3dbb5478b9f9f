"""Launching the Triton kernels of the perceptron: block sizes and grids. Importing this imports triton.

Legend: T positions, D width of the input, F hidden units, O width of the output.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
from torch import Tensor

from xarch.kernels.gpu import dot_mode, interpreted, rows_last
from xarch.kernels.prefix_mlp import triton_kernels as kernels
from xarch.kernels.prefix_mlp.activation import number
from xarch.kernels.prefix_mlp.plain import Layer

BLOCK = 64
"""Positions, units and outputs of a tile; less where fewer positions are interpreted."""
STEP = 32
"""Inner dimension that a program takes at a time."""


def forward(
    x_TD: Tensor, count_T: Tensor, into: Sequence[Layer], out: Layer, edges: Sequence[int], activation: str | None
) -> Tensor:
    """y [T, O] in the dtype of x. Sorting stays on the device."""
    x = rows_last(x_TD)
    (weight_OF, bias_O), read = (rows_last(out[0]), out[1]), [(rows_last(weight), bias) for weight, bias in into]
    first, second = read[0], read[-1]
    positions, width, units, outputs = len(x), x.shape[1], weight_OF.shape[1], len(weight_OF)
    sorted_T, order_T = count_T.sort(descending=True, stable=True)
    most_T = torch.tensor(edges, device=x.device).index_select(0, sorted_T.clamp(0, len(edges) - 1)).int()
    half = x.dtype if {w.dtype for w, _ in (*read, out)} == {x.dtype} else torch.float32
    hidden_TF = x.new_empty(positions, units, dtype=half)
    y_TO = x.new_empty(positions, outputs)
    block = 32 if interpreted() else BLOCK
    options = {"BT": block, "BF": block, "num_warps": 4, "num_stages": 3}
    tiles = triton.cdiv(positions, block)
    given = [hidden_TF if t is None else t.contiguous() for t in (first[1], second[1], bias_O)]
    kernels.hidden_kernel[(tiles, triton.cdiv(units, block))](
        x, order_T, most_T, first[0], given[0], second[0], given[1], hidden_TF,
        positions, width, units, x.stride(0), first[0].stride(0), second[0].stride(0),
        ACTIVATION=number(activation), GATED=len(read) > 1,
        HAS_FIRST=first[1] is not None, HAS_SECOND=second[1] is not None,
        BD=STEP, **dot_mode(x, *(weight for weight, _ in read)), **options,
    )  # fmt: skip
    kernels.output_kernel[(tiles, triton.cdiv(outputs, block))](
        hidden_TF, order_T, most_T, weight_OF, given[2], y_TO,
        positions, units, outputs, weight_OF.stride(0),
        HAS_BIAS=bias_O is not None, BO=block, **dot_mode(hidden_TF, weight_OF), **options,
    )  # fmt: skip
    return y_TO
