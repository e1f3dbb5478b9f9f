"""The selective scan in chunks of tokens, plain PyTorch, with a hand-written backward pass.

Everything that does not depend on the state is computed for a whole chunk at once; the recurrence itself is one fused
operation per token. The backward pass keeps the inputs and the state before each chunk. See README.md for the formulas.

Legend: B batch, D = G·R channels, L tokens, N state size, G B/C groups, R channels per group, Q tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.dispatch import register
from xarch.kernels.precision import LOG_FLOOR, island_dtype, tracing, without_autocast
from xarch.kernels.segments import runs
from xarch.kernels.selective_scan.step import skip_and_gate, step_size
from xarch.kernels.selective_scan.traced import scan_traced

_CHUNK_CELLS = 1 << 20
"""States of a chunk, Q·B·D·N: few enough for the caches, many enough to hide the cost of starting an operation."""


@register("selective_scan", "torch", priority=10)
def selective_scan_plain(
    x_BDL: Tensor,
    dt_BDL: Tensor,
    A_DN: Tensor,
    B_BGNL: Tensor,
    C_BGNL: Tensor,
    D_D: Tensor | None,
    z_BDL: Tensor | None,
    *,
    dt_bias_D: Tensor | None,
    dt_softplus: bool,
    initial_state_BDN: Tensor | None,
    segment_ids_BL: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.selective_scan`; the state is always returned."""
    batch, channels, length = x_BDL.shape
    dtype = island_dtype(x_BDL, dt_BDL, A_DN, B_BGNL, C_BGNL, initial_state_BDN)
    if initial_state_BDN is None:
        state_BDN = x_BDL.new_zeros(batch, channels, A_DN.shape[1], dtype=dtype)
    else:
        state_BDN = initial_state_BDN.to(dtype)
    if length == 0:
        return torch.zeros_like(x_BDL), state_BDN
    keep_BL = None
    if segment_ids_BL is not None:
        run_BL = runs(segment_ids_BL)
        keep_BL = torch.ones_like(run_BL, dtype=dtype)
        keep_BL[:, 1:] = run_BL[:, 1:] == run_BL[:, :-1]
    x, A, B, C = (t.to(dtype) for t in (x_BDL, A_DN, B_BGNL, C_BGNL))
    dt = step_size(dt_BDL, dt_bias_D, dt_softplus, dtype)
    if tracing():
        y, last_BDN = scan_traced(x, dt, A, B, C, state_BDN, keep_BL)
    else:
        y, last_BDN = _Scan.apply(x, dt, A, B, C, state_BDN, keep_BL)
    return skip_and_gate(y, x, D_D, z_BDL).to(x_BDL.dtype), last_BDN


class _Scan(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, state: Tensor, keep: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        groups = B.shape[1]
        y_BGRL = torch.empty_like(x.unflatten(1, (groups, -1)), memory_format=torch.contiguous_format)
        state_BGRN = state.unflatten(1, (groups, -1))
        states = [state_BGRN]
        for part in _parts(x, A):
            chunk = _Chunk(x, dt, A, B, C, keep, part)
            h_QBGRN = chunk.states(states[-1])
            y_BGRL[..., part] = (h_QBGRN @ chunk.C_QBGN1).squeeze(-1).permute(1, 2, 3, 0)
            states.append(h_QBGRN[-1].clone())
            if not any(ctx.needs_input_grad):
                del states[0]
        ctx.save_for_backward(x, dt, A, B, C, keep, *states[:-1])
        ctx.set_materialize_grads(False)
        return y_BGRL.flatten(1, 2), states[-1].flatten(1, 2)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, dt, A, B, C, keep, *states = ctx.saved_tensors
        dy, dlast = grads
        dy = torch.zeros_like(x) if dy is None else dy
        with without_autocast(x.device):
            return *_backward(dy, dlast, x, dt, A, B, C, keep, states), None


def _backward(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    dt: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    keep: Tensor | None,
    states: list[Tensor],
) -> tuple[Tensor, ...]:
    groups = B.shape[1]
    dx, ddt = (torch.empty_like(x.unflatten(1, (groups, -1)), memory_format=torch.contiguous_format) for _ in "xt")
    dB, dC = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (B, C))
    dA_GRN = torch.zeros_like(states[0][0])
    carry_BGRN = torch.zeros_like(states[0]) if dlast is None else dlast.unflatten(1, (groups, -1))
    for part, state_BGRN in reversed(list(zip(_parts(x, A), states, strict=True))):
        chunk = _Chunk(x, dt, A, B, C, keep, part)
        h_QBGRN = chunk.states(state_BGRN)
        dy_QBGR = chunk.pick(dy)
        g_QBGRN = dy_QBGR[..., None] * chunk.C_QBGN1.transpose(-1, -2)
        g_QBGRN[-1] += carry_BGRN
        for t in reversed(range(len(g_QBGRN) - 1)):
            g_QBGRN[t].addcmul_(chunk.a_QBGRN[t + 1], g_QBGRN[t + 1])
        dC[..., part] = (dy_QBGR[..., None, :] @ h_QBGRN).squeeze(-2).permute(1, 2, 3, 0)
        dB[..., part] = (chunk.dtx_QBGR[..., None, :] @ g_QBGRN).squeeze(-2).permute(1, 2, 3, 0)
        u_QBGR = (g_QBGRN @ chunk.B_QBGN1).squeeze(-1)
        given_QBGRN = g_QBGRN.mul_(chunk.a_QBGRN)
        carry_BGRN = given_QBGRN[0].clone()
        through_QBGRN = given_QBGRN
        through_QBGRN[1:] *= h_QBGRN[:-1]
        through_QBGRN[0] *= state_BGRN
        w_QBGR = (through_QBGRN * chunk.A_GRN).sum(-1)
        dA_GRN += through_QBGRN.mul_(chunk.dt_QBGR[..., None]).sum((0, 1))
        dx[..., part] = (chunk.dt_QBGR * u_QBGR).permute(1, 2, 3, 0)
        ddt[..., part] = (chunk.x_QBGR * u_QBGR + w_QBGR).permute(1, 2, 3, 0)
    return dx.flatten(1, 2), ddt.flatten(1, 2), dA_GRN.flatten(0, 1), dB, dC, carry_BGRN.flatten(1, 2)


class _Chunk:
    """The inputs of some tokens, tokens first, and their decays."""

    def __init__(
        self, x: Tensor, dt: Tensor, A: Tensor, B: Tensor, C: Tensor, keep: Tensor | None, part: slice
    ) -> None:
        self.part = part
        self.groups = B.shape[1]
        self.A_GRN = A.unflatten(0, (self.groups, -1))
        self.x_QBGR, self.dt_QBGR = self.pick(x), self.pick(dt)
        self.dtx_QBGR = self.dt_QBGR * self.x_QBGR
        self.B_QBGN1, self.C_QBGN1 = (t[..., part].permute(3, 0, 1, 2).contiguous()[..., None] for t in (B, C))
        self.a_QBGRN = (self.dt_QBGR[..., None] * self.A_GRN).clamp_(min=LOG_FLOOR).exp_()
        if keep is not None:
            self.a_QBGRN *= keep[:, part].t()[:, :, None, None, None]

    def pick(self, t_BDL: Tensor) -> Tensor:
        """These tokens of x, dt or a gradient as [Q, B, G, R]."""
        return t_BDL[..., self.part].permute(2, 0, 1).contiguous().unflatten(2, (self.groups, -1))

    def states(self, before_BGRN: Tensor) -> Tensor:
        """The state after each token [Q, B, G, R, N]."""
        h_QBGRN = self.dtx_QBGR[..., None] * self.B_QBGN1.transpose(-1, -2)
        for h, a in zip(h_QBGRN, self.a_QBGRN, strict=True):
            h.addcmul_(a, before_BGRN)
            before_BGRN = h
        return h_QBGRN


def _parts(x_BDL: Tensor, A_DN: Tensor) -> list[slice]:
    """The tokens of each chunk."""
    batch, _, length = x_BDL.shape
    tokens = min(256, max(16, _CHUNK_CELLS // max(1, batch * A_DN.numel())))
    return [slice(first, min(first + tokens, length)) for first in range(0, length, tokens)]
