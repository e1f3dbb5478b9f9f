"""The gated delta rule of Gated DeltaNet: a state that forgets, and corrects what it holds for a key.

Legend: B batch, L tokens, H query heads, K key/value heads, P value width, N key width.
"""

from __future__ import annotations

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import select
from xarch.kernels.gated_delta import cpp, naive, plain, triton
from xarch.kernels.gated_delta.step import gated_delta_step
from xarch.kernels.precision import without_autocast

__all__ = ["cpp", "gated_delta", "gated_delta_step", "naive", "plain", "triton"]


def gated_delta(
    q_BLHN: Tensor,
    k_BLKN: Tensor,
    v_BLKP: Tensor,
    log_a_BLK: Tensor,
    beta_BLK: Tensor,
    *,
    initial_state_BKPN: Tensor | None = None,
    segment_ids_BL: Tensor | None = None,
    return_final_state: bool = False,
    chunk_size: int | None = None,
    backend: str | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """S_t = a_t S_{t-1} (I - beta_t k_t k_tᵀ) + beta_t v_t k_tᵀ and y_t = S_t q_t with S [P, N] per key/value head.

    The recurrence of Gated DeltaNet (arXiv 2412.06464). Keys and queries are taken as they are: a caller normalises
    keys to length 1 and keeps beta within [0, 2], or the state may grow without bound.

    Args:
        q_BLHN: queries; K divides H and head h reads the state of key/value head ``h // (H // K)``.
        k_BLKN, v_BLKP: keys and values.
        log_a_BLK: log of the decay, <= 0; give it in float32 or wider.
        beta_BLK: part of the value that is written in place of what the state holds for the key.
        initial_state_BKPN: state before the first token; it belongs to the document of the first token.
        segment_ids_BL: document of each token; nothing flows across a change of id.
        return_final_state: also return the state after the last token.
        chunk_size: tokens per chunk, for backends that work in chunks; None lets the backend choose.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        y [B, L, H, P] in the dtype of ``v_BLKP``; with ``return_final_state`` also the state [B, K, P, N] in float32
        (float64 for float64 inputs).

    Raises:
        UsageError: shapes do not fit together, ``chunk_size`` < 1, or the backend cannot run the call.
    """
    _check(q_BLHN, k_BLKN, v_BLKP, log_a_BLK, beta_BLK, initial_state_BKPN, segment_ids_BL, chunk_size)
    features = {"segment_ids"} if segment_ids_BL is not None else set()
    if initial_state_BKPN is not None:
        features.add("initial_state")
    if return_final_state:
        features.add("final_state")
    chosen = select("gated_delta", v_BLKP.device, v_BLKP.dtype, features=features, backend=backend)
    with without_autocast(v_BLKP.device):
        y_BLHP, state_BKPN = chosen.run(
            q_BLHN,
            k_BLKN,
            v_BLKP,
            log_a_BLK,
            beta_BLK,
            initial_state_BKPN=initial_state_BKPN,
            segment_ids_BL=segment_ids_BL,
            chunk_size=chunk_size,
        )
    return (y_BLHP, state_BKPN) if return_final_state else y_BLHP


def _check(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    log_a: Tensor,
    beta: Tensor,
    state: Tensor | None,
    segments: Tensor | None,
    chunk_size: int | None,
) -> None:
    if q.dim() != 4 or k.dim() != 4 or v.dim() != 4:
        raise UsageError(
            "gated_delta: want q [B, L, H, N], k [B, L, K, N] and v [B, L, K, P], "
            f"got {list(q.shape)}, {list(k.shape)} and {list(v.shape)}"
        )
    batch, length, states, width = v.shape
    heads, size = q.shape[2:]
    wanted = {
        "q": (q, (batch, length, heads, size)),
        "k": (k, (batch, length, states, size)),
        "log_a": (log_a, (batch, length, states)),
        "beta": (beta, (batch, length, states)),
        "initial_state": (state, (batch, states, width, size)),
        "segment_ids": (segments, (batch, length)),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != shape:
            raise UsageError(
                f"gated_delta: {name} has shape {list(value.shape)}, want {list(shape)}; "
                f"q is {list(q.shape)}, v is {list(v.shape)}"
            )
    if states < 1 or heads % states:
        raise UsageError(f"gated_delta: {states} key/value heads do not divide {heads} query heads")
    if chunk_size is not None and chunk_size < 1:
        raise UsageError(f"gated_delta: chunk_size is {chunk_size}, want at least 1")
