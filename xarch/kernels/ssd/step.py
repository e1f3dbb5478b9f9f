"""SSD for one token: what a generating student runs.

Legend: B batch, H heads, G B/C groups, P value width, N state size.
"""

from __future__ import annotations

from torch import Tensor

from xarch.kernels.precision import without_autocast


def ssd_step(
    x_BHP: Tensor,
    log_a_BH: Tensor,
    B_BGN: Tensor,
    C_BGN: Tensor,
    D_H: Tensor | None,
    state_BHPN: Tensor,
) -> tuple[Tensor, Tensor]:
    """One step of h = a h + x Bᵀ, y = h C + D x (Mamba-2, arXiv 2405.21060, section 3).

    Args:
        x_BHP: values.
        log_a_BH: log of the decay, <= 0.
        B_BGN, C_BGN: input and output vectors; head h uses group ``h // (H // G)``.
        D_H: skip weight per head, or None.
        state_BHPN: state before the token; keep it in float32, a bfloat16 state with a >= 0.998 never decays.

    Returns:
        y [B, H, P] in the dtype of ``x_BHP``, and the state after the token in the dtype of ``state_BHPN``.
    """
    with without_autocast(x_BHP.device):
        heads = x_BHP.shape[1]
        x = x_BHP.to(state_BHPN.dtype)
        B_BHN = _per_head(B_BGN, heads).to(state_BHPN.dtype)
        C_BHN = _per_head(C_BGN, heads).to(state_BHPN.dtype)
        decay_BH11 = log_a_BH.to(state_BHPN.dtype).exp()[:, :, None, None]
        state_BHPN = decay_BH11 * state_BHPN + x[:, :, :, None] * B_BHN[:, :, None, :]
        y_BHP = (state_BHPN @ C_BHN[:, :, :, None])[:, :, :, 0]
        if D_H is not None:
            y_BHP = y_BHP + D_H.to(state_BHPN.dtype)[:, None] * x
        return y_BHP.to(x_BHP.dtype), state_BHPN


def _per_head(t_BGN: Tensor, heads: int) -> Tensor:
    groups = t_BGN.shape[1]
    if groups == heads:
        return t_BGN
    return t_BGN[:, :, None].expand(-1, -1, heads // groups, -1).flatten(1, 2)
