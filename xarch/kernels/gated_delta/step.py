"""The gated delta rule for one token: what a generating student runs.

Legend: B batch, H query heads, K key/value heads, P value width, N key width.
"""

from __future__ import annotations

from torch import Tensor

from xarch.kernels.precision import without_autocast


def gated_delta_step(
    q_BHN: Tensor,
    k_BKN: Tensor,
    v_BKP: Tensor,
    log_a_BK: Tensor,
    beta_BK: Tensor,
    state_BKPN: Tensor,
) -> tuple[Tensor, Tensor]:
    """One step of S = a S + beta (v - a S k) kᵀ, y = S q (Gated DeltaNet, arXiv 2412.06464).

    Args:
        q_BHN: queries; head h reads the state ``h // (H // K)``.
        k_BKN, v_BKP: keys and values.
        log_a_BK: log of the decay, <= 0.
        beta_BK: part of the value that is written.
        state_BKPN: state before the token, in float32 or wider.

    Returns:
        y [B, H, P] in the dtype of ``v_BKP``, and the state after the token in the dtype of ``state_BKPN``.
    """
    with without_autocast(q_BHN.device):
        dtype, states = state_BKPN.dtype, k_BKN.shape[1]
        q_BKRN = q_BHN.to(dtype).unflatten(1, (states, -1))
        k_BK1N = k_BKN.to(dtype)[:, :, None, :]
        state_BKPN = log_a_BK.to(dtype).exp()[:, :, None, None] * state_BKPN
        missing_BKP1 = v_BKP.to(dtype)[..., None] - (state_BKPN * k_BK1N).sum(-1, keepdim=True)
        state_BKPN = state_BKPN + beta_BK.to(dtype)[:, :, None, None] * missing_BKP1 * k_BK1N
        y_BKRP = q_BKRN @ state_BKPN.transpose(2, 3)
        return y_BKRP.flatten(1, 2).to(v_BKP.dtype), state_BKPN
