"""Weighted sums of table rows, the inner step of every interpolation: one call of embedding_bag.

Legend: N points, K rows a point, E entries, C channels.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from xarch.kernels.precision import tracing


def weighted_rows(table_EC: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """sum_k weight[n, k] table[index[n, k]], shape [N, C]; differentiable in the table and the weights."""
    if tracing():
        return (table_EC[index_NK] * weight_NK[..., None]).sum(dim=1)
    return F.embedding_bag(index_NK, table_EC, per_sample_weights=weight_NK, mode="sum")
