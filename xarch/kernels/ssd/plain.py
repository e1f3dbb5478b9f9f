"""SSD in chunks of tokens, plain PyTorch, with a hand-written backward pass.

A chunk is matrix products of cache size; between chunks only the state is carried. The backward pass keeps the inputs
and one state per chunk and recomputes the rest, so memory is linear in L. See README.md for the formulas.

Legend: B batch, L tokens, H = G·R heads, G B/C groups, R heads per group, P value width, N state size, Q tokens of a
chunk, m = B·G, n = B·G·R.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.decay import decay_gradient
from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype, tracing, without_autocast
from xarch.kernels.segments import runs
from xarch.kernels.ssd.chunks import Chunks

CHUNK = 64
"""Fastest of 32, 64, 128 and 256 on one CPU thread at N = P = 64 (see README.md)."""

_CACHE_ELEMENTS = 9 * 64 * 64
"""On a CPU rows of the batch are taken together only while their [n, Q, Q] decay tile has at most so many elements."""


@register("ssd", "torch", priority=10)
def ssd_plain(
    x_BLHP: Tensor,
    log_a_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    *,
    initial_state_BHPN: Tensor | None,
    segment_ids_BL: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.ssd`; the state is always returned."""
    batch, length, heads, width = x_BLHP.shape
    groups, size = B_BLGN.shape[2:]
    chunk = min(chunk_size or CHUNK, max(length, 1))
    dtype = island_dtype(x_BLHP, log_a_BLH, B_BLGN, C_BLGN, initial_state_BHPN)
    if initial_state_BHPN is None:
        state_BHPN = x_BLHP.new_zeros(batch, heads, width, size, dtype=dtype)
    else:
        state_BHPN = initial_state_BHPN.to(dtype)
    if length == 0:
        return torch.zeros_like(x_BLHP), state_BHPN
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    x_BLGRP = x_BLHP.unflatten(2, (groups, -1))
    log_a_BLGR = log_a_BLH.unflatten(2, (groups, -1))
    if tracing():
        y_BLGRP, states = _forward(
            x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, D_H, state_BHPN.flatten(0, 1), run_BL, chunk, False
        )
        return y_BLGRP.flatten(2, 3), states[-1].unflatten(0, (batch, heads))
    rows = batch
    if x_BLHP.device.type == "cpu":
        rows = max(1, _CACHE_ELEMENTS // max(heads * chunk * chunk, 1))
    if rows >= batch:
        y, last = _SSD.apply(x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, D_H, state_BHPN, run_BL, chunk)
        return y.flatten(2, 3), last
    slabs = [t.split(rows) for t in (x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, state_BHPN)]
    run_slabs = [None] * len(slabs[0]) if run_BL is None else run_BL.split(rows)
    parts = [
        _SSD.apply(x, log_a, B, C, D_H, state, run, chunk)
        for x, log_a, B, C, state, run in zip(*slabs, run_slabs, strict=True)
    ]
    return torch.cat([y for y, _ in parts]).flatten(2, 3), torch.cat([last for _, last in parts])


class _SSD(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_BLGRP: Tensor,
        log_a_BLGR: Tensor,
        B_BLGN: Tensor,
        C_BLGN: Tensor,
        D_H: Tensor | None,
        state_BHPN: Tensor,
        run_BL: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        y_BLGRP, states = _forward(
            x_BLGRP,
            log_a_BLGR,
            B_BLGN,
            C_BLGN,
            D_H,
            state_BHPN.flatten(0, 1),
            run_BL,
            chunk,
            any(ctx.needs_input_grad),
        )
        ctx.save_for_backward(x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, D_H, run_BL, *states)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return y_BLGRP, states[-1].view_as(state_BHPN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, D_H, run_BL, *states = ctx.saved_tensors
        dy_BLGRP, dlast_BHPN = grads
        if dy_BLGRP is None:
            dy_BLGRP = torch.zeros_like(x_BLGRP)
        with without_autocast(x_BLGRP.device):
            found = _backward(dy_BLGRP, dlast_BHPN, x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, D_H, run_BL, states, ctx.chunk)
        return *found, None, None


def _forward(
    x_BLGRP: Tensor,
    log_a_BLGR: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    state_nPN: Tensor,
    run_BL: Tensor | None,
    chunk: int,
    keep_states: bool,
) -> tuple[Tensor, list[Tensor]]:
    """y, and the state before each chunk and after the last (only this one without ``keep_states``)."""
    chunks = Chunks(x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, D_H, run_BL, chunk, state_nPN.dtype)
    states, ys = [state_nPN], []
    for start in chunks.starts:
        _, now = chunks.at(start)
        decay, state_nPN = now.decay, states[-1]
        weight_nQQ = chunks.spread(now.C_mQN @ now.B_mQN.transpose(1, 2)).mul_(decay.inside_nQQ)
        y_nQP = weight_nQQ @ now.x_nQP
        y_nQP.addcmul_(decay.enter_nQ1, now.C_nQN @ state_nPN.transpose(1, 2))
        if chunks.D_n11 is not None:
            y_nQP.addcmul_(chunks.D_n11, now.x_nQP)
        states.append(((now.x_nQP * decay.leave_nQ1).transpose(1, 2) @ now.B_nQN).addcmul_(decay.cross_n11, state_nPN))
        if not keep_states:
            del states[0]
        ys.append(chunks.heads_last(y_nQP.to(x_BLGRP.dtype)))
    return torch.cat(ys, 1), states


def _backward(
    dy_BLGRP: Tensor,
    dlast_BHPN: Tensor | None,
    x_BLGRP: Tensor,
    log_a_BLGR: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None,
    run_BL: Tensor | None,
    states: list[Tensor],
    chunk: int,
) -> tuple[Tensor | None, ...]:
    dtype = states[0].dtype
    chunks = Chunks(x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN, D_H, run_BL, chunk, dtype)
    dx, dlog_a, dB, dC = (torch.empty_like(t) for t in (x_BLGRP, log_a_BLGR, B_BLGN, C_BLGN))
    dD_n = torch.zeros_like(states[0][:, 0, 0])
    dstate_nPN = torch.zeros_like(states[0]) if dlast_BHPN is None else dlast_BHPN.to(dtype).flatten(0, 1)
    for i in reversed(range(len(chunks.starts))):
        where, now = chunks.at(chunks.starts[i])
        decay, x_nQP, B_nQN, C_nQN = now.decay, now.x_nQP, now.B_nQN, now.C_nQN
        dy_nQP = chunks.head_first(dy_BLGRP[:, where])

        score_nQQ = chunks.spread(now.C_mQN @ now.B_mQN.transpose(1, 2))
        dscore_nQQ = (dy_nQP @ x_nQP.transpose(1, 2)).mul_(decay.inside_nQQ)
        dscore_mQQ = chunks.gather(dscore_nQQ)
        entering_nQP = dy_nQP * decay.enter_nQ1
        dC_nQN = entering_nQP @ states[i]
        dB_nQN = (x_nQP @ dstate_nPN).mul_(decay.leave_nQ1)
        # Row t of the decays gains, column s loses: what C_t and B_s get through them (README.md, "dlog a").
        dS_nQ = (C_nQN * dC_nQN).sum(-1) - (B_nQN * dB_nQN).sum(-1)
        through_nQQ = dscore_nQQ * score_nQQ
        dS_nQ += through_nQQ.sum(-1)
        dS_nQ -= through_nQQ.sum(-2)
        dT_n1 = (dstate_nPN * states[i + 1]).sum((-1, -2))[:, None]
        dlog_a_nQ = decay_gradient(dS_nQ, dT_n1)

        dx_nQP = score_nQQ.mul_(decay.inside_nQQ).transpose(1, 2) @ dy_nQP
        dx_nQP += (B_nQN * decay.leave_nQ1) @ dstate_nPN.transpose(1, 2)
        dC[:, where] = chunks.groups_last(chunks.gather(dC_nQN).add_(dscore_mQQ @ now.B_mQN))
        dB[:, where] = chunks.groups_last(chunks.gather(dB_nQN).add_(dscore_mQQ.transpose(1, 2) @ now.C_mQN))
        if chunks.D_n11 is not None:
            dx_nQP.addcmul_(chunks.D_n11, dy_nQP)
            dD_n += (dy_nQP * x_nQP).sum((-1, -2))
        dx[:, where] = chunks.heads_last(dx_nQP)
        dlog_a[:, where] = chunks.heads_last(dlog_a_nQ[:, :, None])[..., 0]
        dstate_nPN = (entering_nQP.transpose(1, 2) @ C_nQN).addcmul_(decay.cross_n11, dstate_nPN)
    dD_H = None if D_H is None else dD_n.unflatten(0, (chunks.batch, -1)).sum(0).to(D_H.dtype)
    return dx, dlog_a, dB, dC, dD_H, dstate_nPN.unflatten(0, (chunks.batch, -1))
