"""SSD, the scalar-decay state-space mixer of Mamba-2 and Discrete-Mamba-2.

Legend: B batch, L tokens, H heads, G B/C groups, P value width, N state size.
"""

from __future__ import annotations

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import select
from xarch.kernels.precision import without_autocast
from xarch.kernels.ssd import cpp, mamba_ssm, naive, plain, triton
from xarch.kernels.ssd.step import ssd_step

__all__ = ["cpp", "mamba_ssm", "naive", "plain", "ssd", "ssd_step", "triton"]


def ssd(
    x_BLHP: Tensor,
    log_a_BLH: Tensor,
    B_BLGN: Tensor,
    C_BLGN: Tensor,
    D_H: Tensor | None = None,
    *,
    initial_state_BHPN: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    return_final_state: bool = False,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """y = M x + D x with M[t, s] = (C_t · B_s) exp(S_t - S_s) for s <= t and S the running sum of ``log_a``.

    The same as h_t = a_t h_{t-1} + x_t B_tᵀ, y_t = h_t C_t + D x_t with h [P, N] per head (Mamba-2, arXiv 2405.21060).
    ``log_a`` and ``x`` are taken as they are, with no step size to divide by, so a strong decay cannot overflow.

    Args:
        x_BLHP: values.
        log_a_BLH: log of the decay, <= 0; give it in float32 or wider.
        B_BLGN, C_BLGN: input and output vectors; G divides H and head h uses group ``h // (H // G)``.
        D_H: skip weight per head, or None.
        initial_state_BHPN: state before the first token; it belongs to the document of the first token.
        segment_ids_BL: document of each token; nothing flows across a change of id.
        return_final_state: also return the state after the last token.
        chunk_size: tokens per chunk, for backends that work in chunks; None lets the backend choose.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        y [B, L, H, P] in the dtype of ``x_BLHP``; with ``return_final_state`` also the state [B, H, P, N] in float32
        (float64 for float64 inputs).

    Raises:
        UsageError: shapes do not fit together, ``chunk_size`` < 1, or the backend cannot run the call.
    """
    _check(x_BLHP, log_a_BLH, B_BLGN, C_BLGN, D_H, initial_state_BHPN, segment_ids_BL, chunk_size)
    features = {"segment_ids"} if segment_ids_BL is not None else set()
    if initial_state_BHPN is not None:
        features.add("initial_state")
    if return_final_state:
        features.add("final_state")
    chosen = select("ssd", x_BLHP.device, x_BLHP.dtype, features=features, backend=backend)
    with without_autocast(x_BLHP.device):
        y_BLHP, state_BHPN = chosen.run(
            x_BLHP,
            log_a_BLH,
            B_BLGN,
            C_BLGN,
            D_H,
            initial_state_BHPN=initial_state_BHPN,
            segment_ids_BL=segment_ids_BL,
            chunk_size=chunk_size,
        )
    return (y_BLHP, state_BHPN) if return_final_state else y_BLHP


def _check(
    x: Tensor,
    log_a: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None,
    state: Tensor | None,
    segments: Tensor | None,
    chunk_size: int | None,
) -> None:
    if x.dim() != 4 or B.dim() != 4:
        raise UsageError(f"ssd: want x [B, L, H, P] and B [B, L, G, N], got {list(x.shape)} and {list(B.shape)}")
    batch, length, heads, width = x.shape
    groups, size = B.shape[2:]
    wanted = {
        "log_a": (log_a, (batch, length, heads)),
        "B": (B, (batch, length, groups, size)),
        "C": (C, (batch, length, groups, size)),
        "D": (D, (heads,)),
        "initial_state": (state, (batch, heads, width, size)),
        "segment_ids": (segments, (batch, length)),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != shape:
            raise UsageError(
                f"ssd: {name} has shape {list(value.shape)}, want {list(shape)}; "
                f"x is {list(x.shape)}, B is {list(B.shape)}"
            )
    if groups < 1 or heads % groups:
        raise UsageError(f"ssd: {groups} B/C groups do not divide {heads} heads")
    if chunk_size is not None and chunk_size < 1:
        raise UsageError(f"ssd: chunk_size is {chunk_size}, want at least 1")
