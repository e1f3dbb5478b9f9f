"""One token of the selective scan, for decoding, and what every form does before and after the recurrence.

Legend: B batch, D channels, N state size, G B/C groups.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from xarch.kernels.precision import island_dtype


def selective_scan_step(
    x_BD: Tensor,
    dt_BD: Tensor,
    A_DN: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    D_D: Tensor | None,
    z_BD: Tensor | None,
    state_BDN: Tensor,
    *,
    dt_bias_D: Tensor | None = None,
    dt_softplus: bool = False,
) -> tuple[Tensor, Tensor]:
    """h = exp(dt A) h + dt x B, y = (h C + D x) silu(z) for one token; see :func:`xarch.kernels.selective_scan`.

    ``B`` and ``C`` may be [B, N], for one group. Plain operators, so an exporter can record it.

    Returns:
        y [B, D] in the dtype of ``x_BD`` and the new state in float32 (float64 for float64 inputs).
    """
    dtype = island_dtype(x_BD, dt_BD, A_DN, B_BGN, C_BGN, state_BDN)
    x, A = x_BD.to(dtype), A_DN.to(dtype)
    dt = step_size(dt_BD, dt_bias_D, dt_softplus, dtype)
    B, C = (_per_channel(t.to(dtype), x.shape[1]) for t in (B_BGN, C_BGN))
    state = torch.exp(dt[..., None] * A) * state_BDN.to(dtype) + (dt * x)[..., None] * B
    y = (state * C).sum(-1)
    return skip_and_gate(y, x, D_D, z_BD).to(x_BD.dtype), state


def step_size(dt: Tensor, bias_D: Tensor | None, softplus: bool, dtype: torch.dtype) -> Tensor:
    """dt [B, D] or [B, D, L] plus bias, through softplus where asked for."""
    dt = dt.to(dtype)
    if bias_D is not None:
        dt = dt + channels_second(bias_D.to(dtype), dt)
    return F.softplus(dt) if softplus else dt


def skip_and_gate(y: Tensor, x: Tensor, D_D: Tensor | None, z: Tensor | None) -> Tensor:
    """(y + D x) silu(z)."""
    if D_D is not None:
        y = y + channels_second(D_D.to(y.dtype), x) * x
    return y if z is None else y * F.silu(z.to(y.dtype))


def channels_second(values_D: Tensor, like: Tensor) -> Tensor:
    """[D] shaped to broadcast with [B, D] or [B, D, L]."""
    return values_D if like.dim() == 2 else values_D[:, None]


def _per_channel(t: Tensor, channels: int) -> Tensor:
    if t.dim() == 2:
        return t[:, None, :]
    batch, groups, size = t.shape
    return t[:, :, None, :].expand(batch, groups, channels // groups, size).reshape(batch, channels, size)
