"""SSD on the kernels of the ``mamba_ssm`` package (Mamba-2, arXiv 2405.21060).

Its public call multiplies x by a step size; undoing that by a division costs the digits of the decay's gradient where
the step is small. The kernels below it take the step and the running sum of log a apart, so here every step is one.

Legend: B batch, L tokens, H heads, G B/C groups, P value width, N state size, Q tokens of a chunk.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from xarch.kernels.dispatch import register
from xarch.kernels.gpu import same_dtype, why_not_mamba_ssm
from xarch.kernels.precision import LOG_FLOOR, island_dtype, without_autocast
from xarch.kernels.segments import runs
from xarch.kernels.ssd.plain import ssd_plain
from xarch.kernels.ssd.triton import check


@register(
    "ssd",
    "mamba_ssm",
    priority=40,
    devices=["cuda"],
    dtypes=[torch.float32, torch.bfloat16, torch.float16],
    available=why_not_mamba_ssm,
    check=lambda device: check(ssd_mamba_ssm, device),
)
def ssd_mamba_ssm(
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
    """Arguments and results of :func:`xarch.kernels.ssd`; the state is always returned.

    Calls with a float64 operand or no element run in PyTorch.
    """
    operands: list[Any] = [x_BLHP, log_a_BLH, B_BLGN, C_BLGN, D_H]
    state: dict[str, Any] = {"initial_state_BHPN": initial_state_BHPN, "segment_ids_BL": segment_ids_BL}
    wide = island_dtype(*operands, initial_state_BHPN) == torch.float64
    if wide or x_BLHP.numel() == 0 or B_BLGN.shape[-1] == 0:
        return ssd_plain(*operands, **state, chunk_size=chunk_size)
    chunk = 1 << (min(max(chunk_size or 256, 16), 256) - 1).bit_length()
    run_BL = None if segment_ids_BL is None else runs(segment_ids_BL).int()
    initial = None if initial_state_BHPN is None else initial_state_BHPN.float()
    x, B, C = same_dtype(x_BLHP, B_BLGN, C_BLGN)
    D = None if D_H is None else D_H.float()
    y, last = _SSD.apply(x, log_a_BLH.float(), B, C, D, initial, run_BL, chunk)
    return y.to(x_BLHP.dtype), last


class _SSD(torch.autograd.Function):
    """The order of calls is that of the package's own forward and backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        log_a: Tensor,
        B: Tensor,
        C: Tensor,
        D: Tensor | None,
        initial: Tensor | None,
        run: Tensor | None,
        chunk: int,
    ) -> tuple[Tensor, Tensor]:
        from mamba_ssm.ops.triton.ssd_bmm import _bmm_chunk_fwd
        from mamba_ssm.ops.triton.ssd_chunk_scan import _chunk_scan_fwd

        x, B, C = (t.contiguous() for t in (x, B, C))
        ones, S = _steps(log_a, chunk)
        with torch.cuda.device(x.device):
            states, last = _states(x, ones, S, B, initial, run, chunk, C.dtype)
            scores = _bmm_chunk_fwd(C, B, chunk, seq_idx=run, output_dtype=torch.float32)
            y, _ = _chunk_scan_fwd(scores, x, ones, S, C, states, D=D, seq_idx=run)
        ctx.save_for_backward(x, log_a, B, C, D, initial, run)
        ctx.chunk = chunk
        ctx.set_materialize_grads(False)
        return y, last

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        x, log_a, B, C, D, initial, run = ctx.saved_tensors
        dy, dlast = grads
        dy = torch.zeros_like(x) if dy is None else dy.contiguous()
        with without_autocast(x.device), torch.cuda.device(x.device):
            return *_backward(dy, dlast, x, log_a, B, C, D, initial, run, ctx.chunk), None, None


def _backward(
    dy: Tensor,
    dlast: Tensor | None,
    x: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    initial: Tensor | None,
    run: Tensor | None,
    chunk: int,
) -> tuple[Tensor | None, ...]:
    from mamba_ssm.ops.triton import ssd_bmm, ssd_chunk_scan, ssd_chunk_state, ssd_combined, ssd_state_passing

    groups, size = B.shape[2:]
    ones, S = _steps(log_a, chunk)
    scores = ssd_bmm._bmm_chunk_fwd(C, B, chunk, seq_idx=run, output_dtype=torch.float32)
    states, _ = _states(x, ones, S, B, initial, run, chunk, None)
    dstates = ssd_chunk_scan._chunk_scan_bwd_dstates(C, S, dy, seq_idx=run, dtype=states.dtype)
    dstates, dS_cross, dinitial, states = ssd_state_passing._state_passing_bwd(
        states.flatten(3),
        S[..., -1],
        dstates.flatten(3),
        dfinal_states=None if dlast is None else dlast.flatten(2).contiguous(),
        seq_idx=run,
        has_initial_states=initial is not None,
        dstates_dtype=x.dtype,
        states_dtype=x.dtype,
        chunk_size=chunk,
    )
    states, dstates = (t.unflatten(3, (-1, size)) for t in (states, dstates))
    dinitial = None if dinitial is None else dinitial.unflatten(2, (-1, size))
    dx, _, dD = ssd_combined._chunk_scan_chunk_state_bwd_dx(x, ones, S, B, scores, dy, dstates, D=D, seq_idx=run)
    dB, dS_leave = ssd_chunk_state._chunk_state_bwd_db(x, ones, S, dstates, seq_idx=run, B=B, ngroups=groups)
    dC, dS_enter = ssd_chunk_scan._chunk_scan_bwd_dC(states.to(x.dtype), S, dy, seq_idx=run, C=C, ngroups=groups)
    dscores = ssd_chunk_scan._chunk_scan_bwd_dcb(x, ones, S, dy, seq_idx=run, ngroups=groups).to(scores.dtype)
    dB = ssd_bmm._bmm_chunk_bwd(C, dscores, residual=dB, out=torch.empty_like(B))
    dC = ssd_bmm._bmm_chunk_bwd(B, dscores.transpose(-1, -2), residual=dC, out=torch.empty_like(C))
    dS_enter[..., -1] += dS_cross
    dsteps = ssd_chunk_scan._chunk_scan_bwd_ddAcs_stable(x, ones, S, dy, scores)
    dsteps = dsteps + dS_leave + dS_enter.flip(-1).cumsum(-1).flip(-1)
    dlog_a = dsteps.flatten(2)[..., : x.shape[1]].transpose(1, 2)
    return dx, dlog_a, dB, dC, None if D is None else dD, dinitial


def _steps(log_a: Tensor, chunk: int) -> tuple[Tensor, Tensor]:
    """Steps of one (zero after the last token) and running sums of log a in each chunk, [B, H, chunks, Q]."""
    length = log_a.shape[1]
    after = math.ceil(length / chunk) * chunk - length
    steps = F.pad(log_a.clamp(min=LOG_FLOOR).transpose(1, 2), (0, after)).unflatten(2, (-1, chunk))
    ones = F.pad(torch.ones_like(log_a).transpose(1, 2), (0, after)).unflatten(2, (-1, chunk))
    return ones.contiguous(), steps.cumsum(-1)


def _states(
    x: Tensor,
    ones: Tensor,
    S: Tensor,
    B: Tensor,
    initial: Tensor | None,
    run: Tensor | None,
    chunk: int,
    dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor]:
    """States before each chunk [B, chunks, H, P, N] and after the last [B, H, P, N]."""
    from mamba_ssm.ops.triton.ssd_chunk_state import _chunk_state_fwd
    from mamba_ssm.ops.triton.ssd_state_passing import _state_passing_fwd

    gained = _chunk_state_fwd(B, x, ones, S, seq_idx=run, states_in_fp32=True)
    before = None if initial is None else initial.flatten(2).contiguous()
    states, last = _state_passing_fwd(
        gained.flatten(3), S[..., -1], initial_states=before, seq_idx=run, chunk_size=chunk, out_dtype=dtype
    )
    return states.unflatten(3, (-1, B.shape[-1])), last.unflatten(2, (-1, B.shape[-1]))
