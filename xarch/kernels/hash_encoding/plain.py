"""The encoding in plain PyTorch: all rows and weights, then one weighted sum. Legend: see the package."""

from __future__ import annotations

import torch
from torch import Tensor

from xarch.kernels.dispatch import register
from xarch.kernels.graph_forms import graph_form
from xarch.kernels.hash_encoding.config import HashConfig, level_table
from xarch.kernels.hash_encoding.corners import cells, rows, weights
from xarch.kernels.hash_encoding.traced import hash_encode_traced
from xarch.kernels.precision import island_dtype, tracing
from xarch.kernels.weighted_rows import weighted_rows


@register("hash_encode", "torch", priority=10)
def hash_encode_plain(u_N3: Tensor, table_EF: Tensor, config: HashConfig) -> Tensor:
    """Arguments and result of :func:`xarch.kernels.hash_encode`."""
    dtype = island_dtype(u_N3, table_EF)
    u_N3, table_EF = u_N3.to(dtype), table_EF.to(dtype)
    if tracing() and graph_form("hash") == "batched":
        return hash_encode_traced(u_N3, table_EF, config)
    index, weight = [], []
    for level in level_table(config):
        cell_N3, fraction_N3 = cells(u_N3, level)
        index.append(rows(cell_N3, level))
        weight.append(weights(fraction_N3))
    if tracing():
        # A loop over levels runs three times faster in onnxruntime than one gather of everything.
        return torch.cat([weighted_rows(table_EF, i, w) for i, w in zip(index, weight, strict=True)], dim=-1)
    points, levels = len(u_N3), len(index)
    bags = torch.stack(index, dim=1).view(points * levels, 8), torch.stack(weight, dim=1).view(points * levels, 8)
    return weighted_rows(table_EF, *bags).view(points, levels * config.features)
