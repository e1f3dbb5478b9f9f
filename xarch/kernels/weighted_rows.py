"""Weighted sums of table rows, the inner step of every interpolation: one call of embedding_bag.

Legend: N points, K rows a point, E entries, C channels.
"""

from __future__ import annotations

import functools

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.kernels.precision import tracing

UNROLLED = 4
"""Most rows that an exported graph adds one by one: the corners in a plane. With eight a level, a graph of hash tables
would be too large."""


def weighted_rows(table_EC: Tensor, index_NK: Tensor, weight_NK: Tensor) -> Tensor:
    """sum_k weight[n, k] table[index[n, k]], shape [N, C]; differentiable in the table and the weights."""
    if tracing() and index_NK.shape[1] <= UNROLLED:
        # onnxruntime adds faster than it sums over an axis in the middle.
        corners = zip(index_NK.unbind(1), weight_NK[..., None].unbind(1), strict=True)
        rows = [F.embedding(index_N, table_EC) * weight_N1 for index_N, weight_N1 in corners]
        return functools.reduce(torch.add, rows)
    if tracing():
        return (table_EC[index_NK] * weight_NK[..., None]).sum(dim=1)
    return F.embedding_bag(index_NK, table_EC, per_sample_weights=weight_NK, mode="sum")
