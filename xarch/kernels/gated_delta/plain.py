"""The gated delta rule in chunks of tokens, plain PyTorch, with a hand-written backward pass.

Inside a chunk the tokens' corrections solve one triangular system; between chunks only the state is carried. The
backward pass keeps the inputs and one state per chunk and recomputes the rest. See README.md for the formulas.

Legend: B batch, L tokens, H = K·R query heads, K key/value heads, R queries of a state, P value width, N key width, Q
tokens of a chunk, n = B·K.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.decay import Decay, chunk_decay, decay_gradient, lower_triangle
from xarch.kernels.dispatch import register
from xarch.kernels.precision import island_dtype, tracing, without_autocast
from xarch.kernels.segments import runs

CHUNK = 64
"""Fastest of 32, 64 and 128 on one CPU thread at N = P = 64 (see README.md)."""


@register("gated_delta", "torch", priority=10)
def gated_delta_plain(
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    beta_BLK: Tensor,
    *,
    initial_state_BKPN: Tensor | None,
    segment_ids_BL: Tensor | None,
    chunk_size: int | None,
) -> tuple[Tensor, Tensor]:
    """Arguments and results of :func:`xarch.kernels.gated_delta`; the state is always returned."""
    batch, length, states, width = v_BLKP.shape
    chunk = min(chunk_size or CHUNK, max(length, 1))
    dtype = island_dtype(q_BLHN, k_BLKN, v_BLKP, log_a_BLK, beta_BLK, initial_state_BKPN)
    if initial_state_BKPN is None:
        state_BKPN = v_BLKP.new_zeros(batch, states, width, k_BLKN.shape[-1], dtype=dtype)
    else:
        state_BKPN = initial_state_BKPN.to(dtype)
    if length == 0:
        return v_BLKP.new_zeros(batch, 0, q_BLHN.shape[2], width), state_BKPN
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL)
    operands = (q_BLHN.unflatten(2, (states, -1)), k_BLKN, v_BLKP, log_a_BLK, beta_BLK)
    if tracing():
        y_BLKRP, kept = _forward(operands, state_BKPN.flatten(0, 1), run_BL, chunk, False)
        return y_BLKRP.flatten(2, 3), kept[-1].view_as(state_BKPN)
    y, last = _GatedDelta.apply(*operands, state_BKPN, run_BL, chunk)
    return y.flatten(2, 3), last


class _GatedDelta(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> tuple[Tensor, Tensor]:
        *operands, state_BKPN, run_BL, chunk = inputs
        keep = any(ctx.needs_input_grad)
        y_BLKRP, states = _forward(operands, state_BKPN.flatten(0, 1), run_BL, chunk, keep)
        ctx.save_for_backward(*operands, run_BL, *states)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return y_BLKRP, states[-1].view_as(state_BKPN)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        *operands, run_BL = ctx.saved_tensors[:6]
        states = ctx.saved_tensors[6:]
        dy_BLKRP, dlast_BKPN = grads
        with without_autocast(operands[0].device):
            return *_backward(dy_BLKRP, dlast_BKPN, operands, states, run_BL, ctx.chunk), None, None


class _Chunk(NamedTuple):
    """Operands of one chunk, and what both passes compute of them."""

    q_nRQN: Tensor
    k_nQN: Tensor
    v_nQP: Tensor
    beta_nQ1: Tensor
    decay: Decay
    below_nQQ: Tensor
    """The products of keys with their decays, below the diagonal."""
    read_nQP: Tensor
    """What the state before the chunk holds for each key."""
    u_nQP: Tensor
    """What each token writes for its key: beta times the value less what the state holds."""
    weight_nRQQ: Tensor
    """What each query reads of each write."""


class _Chunks:
    """The operands of a call, cut into chunks and turned heads first."""

    def __init__(self, operands: Sequence[Tensor], run_BL: Tensor | None, size: int, dtype: torch.dtype) -> None:
        self.q, self.k, self.v, self.log_a, self.beta = operands
        self.batch, self.length, self.heads = self.v.shape[:3]
        self.run_nL = None if run_BL is None else run_BL.repeat_interleave(self.heads, 0)
        self.size, self.dtype = size, dtype
        self.starts = range(0, self.length, size)
        self.tril_QQ = lower_triangle(size, dtype, self.v.device)
        self._strict_QQ = self.tril_QQ - torch.eye(size, dtype=dtype, device=self.v.device)

    def strict(self, tokens: int) -> Tensor:
        """Ones below the diagonal."""
        return self._strict_QQ[:tokens, :tokens]

    def at(self, start: int, state_nPN: Tensor) -> tuple[slice, _Chunk]:
        """Where the chunk that begins at a token lies, and its operands, given the state before it."""
        where = slice(start, min(start + self.size, self.length))
        q_nRQN = self.q[:, where].to(self.dtype).permute(0, 2, 3, 1, 4).flatten(0, 1)
        k_nQN, v_nQP = (self.head_first(t[:, where]) for t in (self.k, self.v))
        log_a_nQ1, beta_nQ1 = (self.head_first(t[:, where, :, None]) for t in (self.log_a, self.beta))
        decay = chunk_decay(log_a_nQ1[..., 0], self.tril_QQ, self.run_nL, start)
        k_nNQ = k_nQN.transpose(1, 2)
        below_nQQ = (k_nQN @ k_nNQ) * decay.inside_nQQ * self.strict(where.stop - start)
        read_nQP = (k_nQN @ state_nPN.transpose(1, 2)) * decay.enter_nQ1
        u_nQP = _solve(beta_nQ1 * below_nQQ, beta_nQ1 * (v_nQP - read_nQP))
        weight_nRQQ = _stacked(q_nRQN, k_nNQ) * decay.inside_nQQ[:, None]
        return where, _Chunk(q_nRQN, k_nQN, v_nQP, beta_nQ1, decay, below_nQQ, read_nQP, u_nQP, weight_nRQQ)

    def head_first(self, t_BQKN: Tensor) -> Tensor:
        """[n, Q, N] in the island dtype."""
        return t_BQKN.to(self.dtype).transpose(1, 2).flatten(0, 1)

    def heads_last(self, t_nQN: Tensor) -> Tensor:
        """[B, Q, K, N], the inverse of :meth:`head_first`."""
        return t_nQN.unflatten(0, (self.batch, self.heads)).transpose(1, 2)

    def queries_last(self, t_nRQP: Tensor) -> Tensor:
        """[B, Q, K, R, P]."""
        return t_nRQP.unflatten(0, (self.batch, self.heads)).permute(0, 3, 1, 2, 4)


def _forward(
    operands: Sequence[Tensor], state_nPN: Tensor, run_BL: Tensor | None, chunk: int, keep_states: bool
) -> tuple[Tensor, list[Tensor]]:
    """y, and the state before each chunk and after the last (only this one without ``keep_states``)."""
    chunks = _Chunks(operands, run_BL, chunk, state_nPN.dtype)
    states, ys = [state_nPN], []
    for start in chunks.starts:
        state_nPN = states[-1]
        _, now = chunks.at(start, state_nPN)
        y_nRQP = _stacked(now.weight_nRQQ, now.u_nQP)
        y_nRQP = y_nRQP + now.decay.enter_nQ1[:, None] * _stacked(now.q_nRQN, state_nPN.transpose(1, 2))
        written_nPN = (now.u_nQP * now.decay.leave_nQ1).transpose(1, 2) @ now.k_nQN
        states.append(written_nPN + now.decay.cross_n11 * state_nPN)
        if not keep_states:
            del states[0]
        ys.append(chunks.queries_last(y_nRQP.to(chunks.v.dtype)))
    return torch.cat(ys, 1), states


def _backward(
    dy_BLKRP: Tensor | None,
    dlast_BKPN: Tensor | None,
    operands: Sequence[Tensor],
    states: Sequence[Tensor],
    run_BL: Tensor | None,
    chunk: int,
) -> tuple[Tensor, ...]:
    dtype = states[0].dtype
    chunks = _Chunks(operands, run_BL, chunk, dtype)
    if dy_BLKRP is None:
        dy_BLKRP = chunks.v.new_zeros(*chunks.q.shape[:-1], chunks.v.shape[-1])
    dq, dk, dv, dlog_a, dbeta = (torch.empty_like(t) for t in operands)
    dstate_nPN = torch.zeros_like(states[0]) if dlast_BKPN is None else dlast_BKPN.to(dtype).flatten(0, 1)
    for i in reversed(range(len(chunks.starts))):
        state_nPN = states[i]
        where, now = chunks.at(chunks.starts[i], state_nPN)
        decay, q_nRQN, k_nQN, beta_nQ1, u_nQP = now.decay, now.q_nRQN, now.k_nQN, now.beta_nQ1, now.u_nQP
        dy_nRQP = dy_BLKRP[:, where].to(dtype).permute(0, 2, 3, 1, 4).flatten(0, 1)

        # What was written: read by queries of the chunk, and left in the state.
        kept_nQP = (k_nQN @ dstate_nPN.transpose(1, 2)) * decay.leave_nQ1
        du_nQP = _joined(now.weight_nRQQ).transpose(1, 2) @ dy_nRQP.flatten(1, 2) + kept_nQP
        transposed_nQQ = (beta_nQ1 * now.below_nQQ).transpose(1, 2)
        dright_nQP = torch.linalg.solve_triangular(transposed_nQQ, du_nQP, upper=True, unitriangular=True)
        dsolved_nQQ = -(dright_nQP @ u_nQP.transpose(1, 2))
        dread_nQP = -beta_nQ1 * dright_nQP
        dpair_nQQ = beta_nQ1 * dsolved_nQQ
        dbelow_nQQ = dpair_nQQ * decay.inside_nQQ * chunks.strict(k_nQN.shape[1])
        dweight_nRQQ = _stacked(dy_nRQP, u_nQP.transpose(1, 2))
        dscore_nRQQ = dweight_nRQQ * decay.inside_nQQ[:, None]

        entering_nRQP, reading_nQP = dy_nRQP * decay.enter_nQ1[:, None], dread_nQP * decay.enter_nQ1
        entering_nIP, q_nIN = entering_nRQP.flatten(1, 2), q_nRQN.flatten(1, 2)
        dq_nRQN = (entering_nIP @ state_nPN).view_as(q_nRQN)
        # Row t of the decays gains and column s loses what goes through them.
        through_nQQ = (dweight_nRQQ * now.weight_nRQQ).sum(1) + dpair_nQQ * now.below_nQQ
        dS_nQ = through_nQQ.sum(-1) - through_nQQ.sum(-2) - (u_nQP * kept_nQP).sum(-1)
        dS_nQ += (dq_nRQN * q_nRQN).sum((1, 3)) + (dread_nQP * now.read_nQP).sum(-1)
        dT_n1 = (dstate_nPN * states[i + 1]).sum((-1, -2))[:, None]

        dq_nRQN += _stacked(dscore_nRQQ, k_nQN)
        dk_nQN = dbelow_nQQ @ k_nQN + dbelow_nQQ.transpose(1, 2) @ k_nQN
        dk_nQN += _joined(dscore_nRQQ).transpose(1, 2) @ q_nIN
        dk_nQN += reading_nQP @ state_nPN + (u_nQP * decay.leave_nQ1) @ dstate_nPN
        dbeta_nQ1 = (dright_nQP * (now.v_nQP - now.read_nQP)).sum(-1, keepdim=True)
        dbeta_nQ1 += (dsolved_nQQ * now.below_nQQ).sum(-1, keepdim=True)

        dq[:, where] = chunks.queries_last(dq_nRQN)
        dk[:, where], dv[:, where] = chunks.heads_last(dk_nQN), chunks.heads_last(beta_nQ1 * dright_nQP)
        dlog_a[:, where] = chunks.heads_last(decay_gradient(dS_nQ, dT_n1)[..., None])[..., 0]
        dbeta[:, where] = chunks.heads_last(dbeta_nQ1)[..., 0]
        dstate_nPN = decay.cross_n11 * dstate_nPN + reading_nQP.transpose(1, 2) @ k_nQN
        dstate_nPN += entering_nIP.transpose(1, 2) @ q_nIN
    return dq, dk, dv, dlog_a, dbeta, dstate_nPN.unflatten(0, (chunks.batch, -1))


def _stacked(t_nRQX: Tensor, right_nXY: Tensor) -> Tensor:
    """The product of all R queries' rows [n, R, Q, Y], in one product a state."""
    if tracing():
        # onnxscript takes a product between two reshapes for a broadcast one, and broadcasts wrongly where n = R.
        return t_nRQX @ right_nXY[:, None]
    return (t_nRQX.flatten(1, 2) @ right_nXY).unflatten(1, t_nRQX.shape[1:3])


def _joined(t_nRQX: Tensor) -> Tensor:
    """[n, R·Q, X]."""
    return t_nRQX.flatten(1, 2)


def _solve(below_nQQ: Tensor, right_nQP: Tensor) -> Tensor:
    """X with (I + below) X = right, for a matrix that is zero on and above the diagonal."""
    if not tracing():
        return torch.linalg.solve_triangular(below_nQQ, right_nQP, upper=False, unitriangular=True)
    # Exporters have no triangular solve. The inverse of a pair of diagonal blocks follows from those of both:
    # [[A, 0], [C, B]]⁻¹ = [[A⁻¹, 0], [-B⁻¹ C A⁻¹, B⁻¹]]; blocks of one token are their own inverses.
    size = below_nQQ.shape[-1]
    inverse_nQQ = torch.eye(size, dtype=below_nQQ.dtype, device=below_nQQ.device).expand_as(below_nQQ)
    place_Q = torch.arange(size, device=below_nQQ.device)
    block = 1
    while block < size:
        pair_QQ = place_Q[:, None] // (2 * block) == place_Q // (2 * block)
        corner_QQ = pair_QQ & (place_Q[:, None] // block > place_Q // block)
        inverse_nQQ = inverse_nQQ - inverse_nQQ @ (below_nQQ * corner_QQ.to(below_nQQ.dtype)) @ inverse_nQQ
        block *= 2
    return inverse_nQQ @ right_nQP
