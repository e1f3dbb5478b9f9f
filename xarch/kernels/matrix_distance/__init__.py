"""Distance between a teacher's attention matrix and a student's state-space mixing matrix, per head.

Legend: B batch, L tokens, H heads, K key heads, E head width, G B/C groups, N state size.
"""

from __future__ import annotations

from torch import Tensor

from xarch.errors import UsageError
from xarch.kernels.dispatch import select
from xarch.kernels.matrix_distance import cpp, naive, plain, triton
from xarch.kernels.matrix_distance.attention import attention_matrix
from xarch.kernels.matrix_distance.result import MatrixDistance
from xarch.kernels.precision import without_autocast

__all__ = ["MatrixDistance", "attention_matrix", "cpp", "matrix_distance", "naive", "plain", "triton"]


def matrix_distance(
    q_BLHE: Tensor,
    k_BLKE: Tensor,
    C_BLGN: Tensor,
    B_BLGN: Tensor,
    log_a_BLH: Tensor,
    D_H: Tensor | None,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    segment_ids_BL: Tensor | None = None,
    mask_BL: Tensor | None = None,
    tile: tuple[int, int] = (128, 128),
    backend: str | None = None,
) -> MatrixDistance:
    """‖M - P‖_F per sequence and head, the objective of MOHAWK's stage 1 (arXiv 2408.10189, section 3).

    P = softmax(scale q kᵀ) is causal attention, M[t, s] = (C_t · B_s) exp(S_t - S_s) + D [t = s] for s <= t with S the
    running sum of ``log_a``. Gradients go to C, B, log_a and D only.

    Args:
        q_BLHE, k_BLKE: queries and keys as they enter the softmax; query head h uses key head ``h // (H // K)``.
        C_BLGN, B_BLGN: output and input vectors; head h uses group ``h // (H // G)``.
        log_a_BLH: log of the decay, <= 0.
        D_H: skip weight per head, or None.
        scale: factor on the scores.
        window: P attends only to keys s with t - s < window (M is compared everywhere).
        softcap: scores become ``softcap * tanh(score / softcap)``.
        segment_ids_BL: document of each token; both matrices are zero across a change of id.
        mask_BL: True for real tokens; rows and columns of padding do not count and are not attended to.
        tile: tile size of the `torch` backend, in queries and keys.
        backend: force a backend, see :mod:`xarch.kernels.dispatch`.

    Returns:
        Distance [B, H] and teacher norm ‖P‖_F [B, H] (no gradient), in float32 (float64 for float64 inputs).

    Raises:
        UsageError: shapes do not fit together, window or tile below 1, or the backend cannot run the call.
    """
    _check(q_BLHE, k_BLKE, C_BLGN, B_BLGN, log_a_BLH, D_H, segment_ids_BL, mask_BL, window, tile)
    features = {"segment_ids"} if segment_ids_BL is not None else set()
    for name, wanted in {"mask": mask_BL, "window": window, "softcap": softcap}.items():
        if wanted is not None:
            features.add(name)
    chosen = select("matrix_distance", q_BLHE.device, C_BLGN.dtype, features=features, backend=backend)
    with without_autocast(q_BLHE.device):
        return chosen.run(
            q_BLHE.detach(),
            k_BLKE.detach(),
            C_BLGN,
            B_BLGN,
            log_a_BLH,
            D_H,
            scale=scale,
            window=window,
            softcap=softcap,
            segment_ids_BL=segment_ids_BL,
            mask_BL=mask_BL,
            tile=tile,
        )


def _check(
    q: Tensor,
    k: Tensor,
    C: Tensor,
    B: Tensor,
    log_a: Tensor,
    D: Tensor | None,
    segments: Tensor | None,
    mask: Tensor | None,
    window: int | None,
    tile: tuple[int, int],
) -> None:
    if q.dim() != 4 or k.dim() != 4 or C.dim() != 4:
        raise UsageError(
            "matrix_distance: want q [B, L, H, E], k [B, L, K, E] and C [B, L, G, N], "
            f"got {list(q.shape)}, {list(k.shape)} and {list(C.shape)}"
        )
    batch, length, heads, width = q.shape
    key_heads, groups, size = k.shape[2], C.shape[2], C.shape[3]
    wanted = {
        "k": (k, (batch, length, key_heads, width)),
        "C": (C, (batch, length, groups, size)),
        "B": (B, (batch, length, groups, size)),
        "log_a": (log_a, (batch, length, heads)),
        "D": (D, (heads,)),
        "segment_ids": (segments, (batch, length)),
        "mask": (mask, (batch, length)),
    }
    for name, (value, shape) in wanted.items():
        if value is not None and tuple(value.shape) != shape:
            raise UsageError(
                f"matrix_distance: {name} has shape {list(value.shape)}, want {list(shape)} for q {list(q.shape)}"
            )
    for name, count in {"key heads": key_heads, "B/C groups": groups}.items():
        if count < 1 or heads % count:
            raise UsageError(f"matrix_distance: {count} {name} do not divide {heads} heads")
    if window is not None and window < 1:
        raise UsageError(f"matrix_distance: window is {window}, want at least 1")
    if min(tile) < 1:
        raise UsageError(f"matrix_distance: tile is {tile}, want two sizes of at least 1")
