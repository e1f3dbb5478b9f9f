"""Rotary position embedding on the first part of each head, rotated as halves (RoFormer, arXiv 2104.09864).

Legend: B batch, L tokens, H heads, E head width, F rotated pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from xarch.kernels import graph_form

Rotation = tuple[Tensor, Tensor]
"""Cosine and sine, both [B, L, 1, F] in float32."""


def rotation(positions_BL: Tensor, inverse_frequencies: Sequence[float], gain: float = 1.0) -> Rotation:
    """Return the rotation at every position.

    The frequencies are a constant of the graph: a buffer would be lost when a module built on the meta device gets its
    storage.
    """
    frequencies_F = torch.tensor(inverse_frequencies, dtype=torch.float32, device=positions_BL.device)
    angle_BL1F = positions_BL.float()[:, :, None, None] * frequencies_F
    cos_BL1F, sin_BL1F = angle_BL1F.cos(), angle_BL1F.sin()
    return (cos_BL1F, sin_BL1F) if gain == 1.0 else (cos_BL1F * gain, sin_BL1F * gain)


def rotate(x_BLHE: Tensor, by: Rotation) -> Tensor:
    """Rotate the first 2F channels: halves (x1, x2) become (x1 cos - x2 sin, x2 cos + x1 sin)."""
    if by[0].shape[-1] == 0:
        return x_BLHE
    # One rotation for all heads of one row of tokens, which is what the operator takes.
    if graph_form("attention") == "runtime" and by[0].shape[0] == 1 and by[0].shape[2] == 1:
        return _in_runtime(x_BLHE, *by)
    plain = x_BLHE.dtype != by[0].dtype or torch.compiler.is_compiling() or any(t.requires_grad for t in by)
    if plain or any(n not in (1, whole) for n, whole in zip(by[0].shape[:2], x_BLHE.shape[:2], strict=True)):
        return _plain(x_BLHE, *by)
    rotated_BLHE: Tensor = _Rotate.apply(x_BLHE, *by)
    return rotated_BLHE


def _plain(x_BLHE: Tensor, cos_BL1F: Tensor, sin_BL1F: Tensor) -> Tensor:
    """Rotate in the wider of the two dtypes; compilers fuse this form and exporters record it."""
    pairs = cos_BL1F.shape[-1]
    first, second = x_BLHE[..., :pairs], x_BLHE[..., pairs : 2 * pairs]
    parts = [first * cos_BL1F - second * sin_BL1F, second * cos_BL1F + first * sin_BL1F]
    if 2 * pairs < x_BLHE.shape[-1]:
        parts.append(x_BLHE[..., 2 * pairs :])
    return torch.cat([p.to(x_BLHE.dtype) for p in parts], -1)


def _in_runtime(x_BLHE: Tensor, cos_1L1F: Tensor, sin_1L1F: Tensor) -> Tensor:
    """As one operator of onnxruntime, whose tables are the rows of these tokens; for exporters."""
    batch, length, heads, width = x_BLHE.shape
    pairs = cos_1L1F.shape[-1]
    tables_LF = [t.reshape(length, pairs) for t in (cos_1L1F, sin_1L1F)]
    first_1 = torch.zeros(1, dtype=torch.int64, device=x_BLHE.device)
    attributes: dict[str, Any] = {"num_heads": heads}
    if 2 * pairs < width:
        attributes["rotary_embedding_dim"] = 2 * pairs
    x_BLX: Tensor = torch.onnx.ops.symbolic(
        "com.microsoft::RotaryEmbedding",
        (x_BLHE.reshape(batch, length, heads * width), first_1, *tables_LF),
        attributes,
        dtype=x_BLHE.dtype,
        shape=(batch, length, heads * width),
        version=1,
    )
    return x_BLX.reshape(batch, length, heads, width)


class _Rotate(torch.autograd.Function):
    """Rotation written directly into the result; the gradient is the inverse rotation and needs no saved x.

    With plain autograd each half costs a zero-filled gradient, and products and concatenation are written once more:
    three times the memory traffic over both passes.
    """

    @staticmethod
    def forward(ctx: Any, x_BLHE: Tensor, cos_BL1F: Tensor, sin_BL1F: Tensor) -> Tensor:
        ctx.save_for_backward(cos_BL1F, sin_BL1F)
        pairs = cos_BL1F.shape[-1]
        y_BLHE = torch.empty_like(x_BLHE, memory_format=torch.contiguous_format)
        (x1, x2), (y1, y2) = ((t[..., :pairs], t[..., pairs : 2 * pairs]) for t in (x_BLHE, y_BLHE))
        torch.mul(x1, cos_BL1F, out=y1).addcmul_(x2, sin_BL1F, value=-1)
        torch.mul(x2, cos_BL1F, out=y2).addcmul_(x1, sin_BL1F)
        y_BLHE[..., 2 * pairs :] = x_BLHE[..., 2 * pairs :]
        return y_BLHE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        cos_BL1F, sin_BL1F = ctx.saved_tensors
        return _Rotate.apply(grads[0], cos_BL1F, -sin_BL1F), None, None
