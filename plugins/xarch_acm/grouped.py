"""Only the learners that run: positions sorted by how many, so that each learner reads one slice of them and weights
are used once. What torch runs outside training; exported graphs have forms of their own, see ``cut``.

Legend: T positions of all samples, D width of the input, O width of the output, F hidden units.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def grouped_prefixes(
    x_TD: Tensor,
    count_T: Tensor,
    into: Sequence[nn.Linear],
    activation: Callable[..., Tensor] | None,
    out: nn.Linear,
    edges: Sequence[int],
) -> Tensor:
    """Return out(activation(into(x), ...)) [T, O] of the first learners of every position.

    Args:
        count_T: learners that run at each position, in 0 to N.
        activation: elementwise; None for none.
        edges: first hidden unit of every learner, and F.
    """
    sorted_T, order_T = count_T.sort(descending=True, stable=True)
    sorted_TD = x_TD.index_select(0, order_T)
    ends = [int(n) for n in (sorted_T[:, None] > torch.arange(len(edges) - 1, device=x_TD.device)).sum(0)]
    made_TO = x_TD.new_zeros(x_TD.shape[0], out.out_features)
    if out.bias is not None:
        made_TO += out.bias
    for end, first, last in zip(ends, edges, edges[1:], strict=False):
        if end:
            units = slice(first, last)
            read = [
                F.linear(sorted_TD[:end], layer.weight[units], None if layer.bias is None else layer.bias[units])
                for layer in into
            ]
            hidden = read[0] if activation is None else activation(*read)
            made_TO[:end] += F.linear(hidden, out.weight[:, units])
    return torch.empty_like(made_TO).index_copy_(0, order_T, made_TO)
